// The binding library itself, compiled into each of codec's modules from where pip put it.

#include <nb_combined.cpp>
