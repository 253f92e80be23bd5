/*
 * dataset.h - what the requests of a run say: made-up ids, documents, or a recorded trace.
 *
 * Token ids are made when a request is sent, from (seed, key) alone, so a data set is small and the
 * same on every machine.  docs/benchmarking.md describes the formats of files and traces.
 */
#ifndef CLI_BENCH_DATASET_H
#define CLI_BENCH_DATASET_H

#include "common/json.h"
#include "common/method.h"
#include "common/status.h"

enum dataset_limits {
    DATASET_MAX_ITEMS = 1 << 20,
    DATASET_MAX_TOKENS = 16 << 20, /* of one prompt, or one answer */
    DATASET_MAX_FILE = 1 << 30,    /* bytes of a trace or a list of prompts */
    DATASET_MAX_EOS = 64,
};

enum dataset_kind { DATASET_RANDOM, DATASET_FILE, DATASET_TRACE };

struct dataset_config {
    enum dataset_kind kind;
    const char *path;    /* of file and trace */
    const char *prompt;  /* file: the question behind each document; NULL: none */
    int64_t n;           /* requests; 0: as many as there are in the file */
    int64_t input_len;   /* random: tokens of a prompt */
    int64_t output_len;  /* tokens of an answer, where the data set does not say */
    bool fixed_output;   /* output_len goes before what the data set says */
    double range_ratio;  /* random: lengths are within (1 - r) .. (1 + r), 0 <= r < 1 */
    double trace_speed;  /* 2: a trace passes in half of its time */
    int64_t trace_block; /* tokens that one of a trace's hash_ids stands for */
    uint64_t seed;
    uint32_t vocab;
    uint32_t eos[DATASET_MAX_EOS]; /* ids that are not drawn */
    int n_eos;
};

struct dataset_item {
    uint32_t n_input;  /* token ids; 0: the text */
    uint32_t n_output; /* the answer's length */
    double due_s;      /* traces only */
    const char *text;  /* borrowed from the data set */
    size_t bytes;
    enum method method; /* METHOD_UNSPECIFIED: the run's */
    uint64_t *blocks;   /* what the blocks of the prompt are made from; NULL: the key */
    size_t n_blocks;
};

struct dataset {
    struct dataset_config config;
    struct dataset_item *items;
    size_t n;
    char **texts; /* what items point to */
    size_t n_texts;
};

/* STATUS_INVALID names the file and the line. */
status dataset_load(struct dataset *out, const struct dataset_config *config);
void dataset_free(struct dataset *dataset);
/* ids [n_input of the item].  Another key gives other ids of the same length, except where the
 * trace says what they are. */
void dataset_ids(const struct dataset *dataset, const struct dataset_item *item, uint64_t key,
                 uint32_t *ids);

/* The two kinds that are read from files; items and texts are filled (dataset_file.c,
 * dataset_trace.c). */
status dataset_read_file(struct dataset *dataset);
status dataset_read_trace(struct dataset *dataset);
/* Reads config.path line by line, each a JSON object. */
typedef status dataset_line(struct dataset *dataset, struct json_reader *reader);
status dataset_each_line(struct dataset *dataset, dataset_line *read);
/* One more, all zeros; *out is borrowed until the next. */
status dataset_add(struct dataset *dataset, struct dataset_item **out);
/* Keeps a malloc'd text; freed at once on failure. */
status dataset_keep_text(struct dataset *dataset, char *text);

#endif
