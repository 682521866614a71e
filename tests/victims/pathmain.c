/* Calls a library that opens another by its bare name. */
int path_open(void);
int main(void) { return path_open(); }
