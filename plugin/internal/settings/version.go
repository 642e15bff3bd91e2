package settings

// Version is the library's, the header's and the Python package's.
const Version = "0.1.0"
