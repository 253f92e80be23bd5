/*
 * attention.h - the operations around attention as plain double-precision loops.
 *
 * Each takes the arguments of its operation with every "act" tensor float32, on the host, and
 * writes doubles; the out of the arguments is not used.
 */
#ifndef TESTS_DEFINITIONS_ATTENTION_H
#define TESTS_DEFINITIONS_ATTENTION_H

#include "kernels/op.h"

/* out (rows, q_heads, head_dim); lse (rows, q_heads). */
void define_attention(double *out, double *lse, const struct attention *args);

/* out (q_heads, n_keys - window). */
void define_window_scores(double *out, const struct window_scores *args);

/* Adds to out and, where args->local is set, to local (q_heads, stride). */
void define_column_sums(double *out, double *local, const struct column_sums *args);

/* out (n_keys). */
void define_dot_scores(double *out, const struct dot_scores *args);

/* out (rows, q_heads, head_dim). */
void define_decode_attention(double *out, const struct decode_attention *args);

#endif
