package service

// Details is what the details service answers.
type Details struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

// Reviews is what the reviews service answers.
type Reviews struct {
	ID      string   `json:"id"`
	Version string   `json:"podname"` // the workload that answered, under the name that the well-known Bookinfo uses
	Reviews []Review `json:"reviews"`
	Call    *Call    `json:"ratingsCall,omitempty"` // to ratings; nil when none was made
}

// Review is one opinion. Rating is nil in version v1.
type Review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *Rating `json:"rating,omitempty"`
}

// Rating is stars with a colour, or an error.
type Rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

// Ratings is what the ratings service answers.
type Ratings struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"` // by reviewer
}
