/*
 * sequence.h - one request on one rank, from its begin in a plan to its release.
 *
 * The engine owns sequences by slot.  The prompt's tokens are kept until its prompt phase ends;
 * after that the KV cache and the token chosen last are all that decode needs.
 */
#ifndef WORKER_SEQUENCE_H
#define WORKER_SEQUENCE_H

#include "worker/trace.h"

enum sequence_state {
    SEQUENCE_FREE,
    SEQUENCE_PROMPT, /* waiting for, or in, its prompt phase */
    SEQUENCE_LIVE,   /* decodes */
    SEQUENCE_FAILED, /* some rank lacked the memory to begin it: plans pass it over */
};

struct sequence {
    enum sequence_state state;
    int slot;
    struct method_params params; /* its lists are the sequence's own */
    struct sampling sampling;
    uint32_t trace;  /* of enum trace_flag */
    int32_t *prompt; /* (n_prompt) */
    int n_prompt;
    int first_row;          /* of the prompt memory */
    int max_rows;           /* that decode may append */
    int appended;           /* of these */
    int32_t token;          /* chosen last, not yet fed back */
    uint32_t n_chosen;      /* tokens chosen so far: the draw's step */
    uint32_t *seen;         /* on the device, of penalties.h; NULL: no penalties */
    bool ranked;            /* positions are those of the cache, STREAMINGLLM's pos_mode */
    bool forked;            /* its prompt is another's, which reported it */
    uint8_t *policies;      /* FASTGEN: (layers, cache heads) of enum fastgen_policy; else NULL */
    struct trace *selected; /* until its prompt phase begins; NULL: not asked for */
    bool lacks_memory;      /* for what it reports; computing goes on */
};

/* Copies the lists of the parameters, which are borrowed from a plan until then; lists of token
 * ids become ascending. */
status sequence_own_lists(struct sequence *sequence);

/* Frees what the sequence owns and leaves it free. */
void sequence_fini(struct sequence *sequence);

/* The position of the token that is fed next.  The first one generated has the prompt's length, or
 * with GEMFILTER, which numbers the chosen tokens anew, how many these are. */
static inline int sequence_position(const struct sequence *sequence)
{
    return method_first_rows(&sequence->params, sequence->n_prompt) + sequence->appended;
}

#endif
