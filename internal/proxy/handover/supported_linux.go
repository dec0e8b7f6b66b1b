package handover

// Supported says whether processes can hand over on this system.
const Supported = true
