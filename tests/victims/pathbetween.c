/* Needs the library that opens another, and has a search path for both. */
int path_open_below(void);
int path_open(void) { return path_open_below(); }
