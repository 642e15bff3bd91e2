/* Everything in one image: the library embeds one file. */
#include "attention.cu"
#include "select.cu"
#include "probe.cu"
#include "tally.cu"
#include "join.cu"
#include "visible.cu"
