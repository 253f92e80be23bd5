/* helpers_files.h - directories, safetensors files and tiny models that tests make up. */
#ifndef TESTS_WORKER_HELPERS_FILES_H
#define TESTS_WORKER_HELPERS_FILES_H

#include "common/model_config.h"

/* A new directory under /tmp; freed and removed, with the files in it, by remove_directory(). */
char *make_directory(void);
void remove_directory(char *dir);

void write_bytes(const char *dir, const char *name, const void *data, size_t bytes);
void write_text(const char *dir, const char *name, const char *text);

/* DIR/NAME = length, header, then the data. */
void write_safetensors(const char *dir, const char *name, const char *header, const void *data,
                       size_t bytes);

/*
 * A Llama of 3 layers: hidden 48, 6 query and 3 KV heads of dimension 8, 20 MLP columns, 35
 * vocabulary rows.  Every number is small_value() of its tensor's name and place, which all
 * dtypes hold exactly.
 */
enum {
    TINY_LAYERS = 3,
    TINY_HIDDEN = 48,
    TINY_QUERY_HEADS = 6,
    TINY_KV_HEADS = 3,
    TINY_HEAD_DIM = 8,
    TINY_MLP = 20,
    TINY_VOCAB = 35,
};

struct tiny_options {
    enum dtype dtype;
    bool tied;         /* and no lm_head */
    bool sharded;      /* two files and an index */
    bool misaligned;   /* the data begin at an odd address */
    const char *skip;  /* a tensor that is left out; NULL: none */
    const char *extra; /* one more header entry and its bytes, at the end: see extra_bytes */
    size_t extra_bytes;
    const char *reshaped; /* a tensor whose two sizes change places */
};

void write_tiny_model(const char *dir, const struct tiny_options *options);
float small_value(const char *tensor, size_t index);

#endif
