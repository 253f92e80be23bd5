/* units_dot.h - the words of linear_rows_template.h over float32 vectors. */
#ifndef KERNELS_CPU_UNITS_DOT_H
#define KERNELS_CPU_UNITS_DOT_H

/* What is multiplied: float32 by float32, float32 by widened bf16, or bf16 pairs. */
enum dot_kind { DOT_F32, DOT_WIDEN, DOT_PAIRS };

static inline size_t dot_lanes(enum dot_kind kind)
{
    (void)kind;
    return VEC_LANES;
}

static inline vec dot_load(bool wide, const void *p, size_t i)
{
    return vec_load_act(wide, p, i);
}

static inline vec dot_load_part(bool wide, const void *p, size_t i, size_t n)
{
    return vec_load_act_part(wide, p, i, (int)n);
}

static inline vec dot_step(enum dot_kind kind, vec x, vec w, vec sum)
{
    (void)kind;
    return vec_fma(x, w, sum);
}

#endif
