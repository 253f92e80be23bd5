/*
 * bench_tokenizer.c - how fast a tokenizer encodes texts, on one thread.
 *
 *   winnow-bench-tokenizer TOKENIZER_JSON ROUNDS FILE...
 *
 * For each file one line: the best round's seconds of processor time, the number of ids, and
 * their FNV-1a hash over four little-endian bytes each.  tokenizer.py reads them.
 */
#include "common/file.h"
#include "coordinator/tokenizer/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_TEXT = 256 << 20 };

static double cpu_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static uint64_t hash_ids(const struct token_ids *ids)
{
    uint64_t hash = 0xcbf29ce484222325U;

    for (size_t i = 0; i < ids->n; i++) {
        for (int shift = 0; shift < 32; shift += 8) {
            hash = (hash ^ (ids->ids[i] >> shift & 0xff)) * 0x100000001b3U;
        }
    }
    return hash;
}

static status bench(const struct tokenizer *tokenizer, const char *path, int rounds)
{
    char *text;
    size_t bytes;
    double best = 0;
    struct token_ids ids = {NULL, 0};
    status st = file_read(&text, &bytes, path, MAX_TEXT);

    for (int i = 0; !st && i < rounds; i++) {
        double begin = cpu_seconds();
        free(ids.ids);
        ids.ids = NULL;
        st = tokenizer_encode(tokenizer, text, bytes, false, &ids);
        double took = cpu_seconds() - begin;
        best = i == 0 || took < best ? took : best;
    }
    if (!st) {
        printf("%.6f %zu %016" PRIx64 "\n", best, ids.n, hash_ids(&ids));
        free(ids.ids);
        free(text);
    }
    return st;
}

int main(int argc, char **argv)
{
    struct tokenizer *tokenizer = NULL;
    long rounds = argc > 3 ? strtol(argv[2], NULL, 10) : 0;

    if (rounds < 1 || rounds > 1000) {
        fprintf(stderr, "usage: winnow-bench-tokenizer TOKENIZER_JSON ROUNDS FILE...\n");
        return 2;
    }
    status st = tokenizer_load(&tokenizer, argv[1]);
    for (int i = 3; !st && i < argc; i++) {
        st = bench(tokenizer, argv[i], (int)rounds);
    }
    if (st) {
        fprintf(stderr, "winnow-bench-tokenizer: %s\n", status_text());
    }
    tokenizer_free(tokenizer);
    return st ? 1 : 0;
}
