/* A C plug-in that needs a C++ library. */
int cxxdep_add(const char *name);
int plug_run(void) { return cxxdep_add("a") + cxxdep_add("b"); }
