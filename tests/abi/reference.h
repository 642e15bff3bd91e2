/* Attention and selection in plain double arithmetic, from the text of the method and nothing else. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "lessismore.h"

/* Reads one element of a row. */
double ref_get(const void *row, int32_t dtype, int element);
/* Writes a row; quantised rows take whole numbers in -8 .. 7 times 1/4, which every type holds exactly. */
void ref_put(void *row, int32_t dtype, const double *values, int elements);
/* Bytes of a row. */
size_t   ref_row(int32_t dtype, int elements);
uint16_t ref_f16(double value);

/* The visible slots in position order. Returns how many. */
int ref_visible(const lim_attention *a, int32_t *slots);

/* logits[head * n + i] of the i-th slot of a list. */
void ref_logits(const lim_attention *a, const int32_t *slots, int n, double *logits);

/* output[head * value_dim + d], over a list of slots. */
void ref_attend(const lim_attention *a, const int32_t *slots, int n, double *output);

/* How a budget is split. */
typedef struct ref_split {
    int sinks, mid, recent;
} ref_split;
ref_split ref_divide(int n, int budget, double recency, int sinks);

/* The token set as indices into the visible tokens, ascending; its size is the split's sum. */
void ref_select(const double *logits, int heads, int n, ref_split split, int32_t *set);

#endif
