/* answer.h - what a Generate call brought: text as it comes, at the end JSON or a summary. */
#ifndef CLI_ANSWER_H
#define CLI_ANSWER_H

#include "cli/generate_options.h"
#include "winnow/v1/inference.pb-c.h"

enum { ANSWER_MAX_TOP = 20 };

/* Of one token, as the server sent it. */
struct answer_logprob {
    uint32_t id;
    float logprob;
    uint32_t n_top; /* 0..ANSWER_MAX_TOP */
    uint32_t top_ids[ANSWER_MAX_TOP];
    float top_logprobs[ANSWER_MAX_TOP];
};

struct answer_output {
    char *text;
    size_t bytes, text_capacity;
    uint32_t *ids;
    size_t n_ids, id_capacity;
    struct answer_logprob *logprobs; /* NULL: none came */
    size_t n_logprobs, logprob_capacity;
    bool done;
    Winnow__V1__FinishReason reason;
    char *stop_string;
    uint64_t seed;
};

struct answer {
    struct answer_output outputs[GENERATE_MAX_SAMPLES];
    int n; /* outputs asked for */
    Winnow__V1__Usage usage;
    Winnow__V1__Timing timing;
};

void answer_init(struct answer *answer, int n);
void answer_fini(struct answer *answer);
/* STATUS_INTERNAL: the server sent what the contract does not allow. */
status answer_tokens(struct answer *answer, const Winnow__V1__Tokens *tokens);
status answer_done(struct answer *answer, const Winnow__V1__Done *done);
status answer_check_complete(const struct answer *answer);

/* One JSON object and a newline; *out is malloc'd. */
status answer_json(const struct answer *answer, char **out);
/* A few lines for a person; *out is malloc'd. */
status answer_summary(const struct answer *answer, char **out);

#endif
