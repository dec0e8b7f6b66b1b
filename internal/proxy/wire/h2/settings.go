package h2

import "encoding/binary"

// SettingID names a parameter of SETTINGS (RFC 9113 section 6.5.2, RFC 8441 section 3).
type SettingID uint16

// The settings.
const (
	SettingHeaderTableSize SettingID = 0x1
	SettingEnablePush      SettingID = 0x2
	SettingMaxStreams      SettingID = 0x3
	SettingInitialWindow   SettingID = 0x4
	SettingMaxFrame        SettingID = 0x5
	SettingMaxHeaderList   SettingID = 0x6
	SettingEnableConnect   SettingID = 0x8
)

// Settings are what one end told the other.
type Settings struct {
	HeaderTableSize uint32
	MaxStreams      uint32
	InitialWindow   uint32
	MaxFrame        uint32
	MaxHeaderList   uint32
	EnablePush      bool
	EnableConnect   bool
}

// DefaultSettings are in force until the first SETTINGS frame. MaxStreams has no limit there, but RFC 9113 section 6.5.2
// recommends at least 100, which is what a client dares before it knows.
func DefaultSettings() Settings {
	return Settings{HeaderTableSize: InitialTable, MaxStreams: 100, InitialWindow: InitialWindow, MaxFrame: MinMaxFrame,
		MaxHeaderList: 1<<32 - 1, EnablePush: true}
}

// Apply changes s by a SETTINGS payload, whose length is a multiple of 6. fromServer says who sent it. Unknown settings
// are ignored. Each value out of range is a ConnError and s is not to be used any more.
func (s *Settings) Apply(p []byte, fromServer bool) error {
	for ; len(p) >= 6; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch SettingID(binary.BigEndian.Uint16(p)) {
		case SettingHeaderTableSize:
			s.HeaderTableSize = v
		case SettingEnablePush:
			if v > 1 || v == 1 && fromServer {
				return ConnError{ProtocolError, "SETTINGS_ENABLE_PUSH is out of range"}
			}
			s.EnablePush = v == 1
		case SettingMaxStreams:
			s.MaxStreams = v
		case SettingInitialWindow:
			if v > MaxWindow {
				return ConnError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE is out of range"}
			}
			s.InitialWindow = v
		case SettingMaxFrame:
			if v < MinMaxFrame || v > MaxMaxFrame {
				return ConnError{ProtocolError, "SETTINGS_MAX_FRAME_SIZE is out of range"}
			}
			s.MaxFrame = v
		case SettingMaxHeaderList:
			s.MaxHeaderList = v
		case SettingEnableConnect:
			if v > 1 || v == 0 && s.EnableConnect { // RFC 8441 section 3
				return ConnError{ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL is out of range or was taken back"}
			}
			s.EnableConnect = v == 1
		}
	}
	return nil
}

// Append appends a SETTINGS frame with what differs from the defaults. server says who we are: only a client may speak of
// ENABLE_PUSH, only a server announces extended CONNECT, and MaxStreams bounds what the other side opens, so a client,
// who allows no push, leaves it out.
func (s *Settings) Append(b []byte, server bool) []byte {
	start := len(b)
	b = AppendFrameHeader(b, FrameHeader{Type: SettingsType})
	put := func(id SettingID, v uint32) {
		b = binary.BigEndian.AppendUint16(b, uint16(id))
		b = binary.BigEndian.AppendUint32(b, v)
	}
	if s.HeaderTableSize != InitialTable {
		put(SettingHeaderTableSize, s.HeaderTableSize)
	}
	if server {
		put(SettingMaxStreams, s.MaxStreams)
		if s.EnableConnect {
			put(SettingEnableConnect, 1)
		}
	} else {
		put(SettingEnablePush, 0)
	}
	if s.InitialWindow != InitialWindow {
		put(SettingInitialWindow, s.InitialWindow)
	}
	if s.MaxFrame != MinMaxFrame {
		put(SettingMaxFrame, s.MaxFrame)
	}
	if s.MaxHeaderList != 1<<32-1 {
		put(SettingMaxHeaderList, s.MaxHeaderList)
	}
	b[start+2] = byte(len(b) - start - FrameHeaderLen)
	return b
}

// AppendSettingsAck appends the acknowledgement of a SETTINGS frame.
func AppendSettingsAck(b []byte) []byte {
	return AppendFrameHeader(b, FrameHeader{Type: SettingsType, Flags: FlagAck})
}
