/*
 * comm_hello.h - the two records by which the ranks of a group find each other, and their checks.
 *
 * The same program runs on all ranks, so records travel as they are.  What comes from a peer is not
 * believed: it is taken apart here and nowhere else.
 */
#ifndef WORKER_COMM_HELLO_H
#define WORKER_COMM_HELLO_H

#include "common/listen.h"

#include <stddef.h>
#include <stdint.h>

/* What a rank publishes in the store. */
struct rank_offer {
    uint64_t key;      /* random: whoever has read the offer knows it */
    char address[280]; /* HOST:PORT of its listener in digits, ended by a 0 */
};

/* What a rank that connects says first. */
struct rank_hello {
    uint64_t key; /* of the listener's offer */
    uint32_t rank, zero;
};

/* The offer of `peer`, as the store has it.  STATUS_UNAVAILABLE: it is none. */
status offer_read(uint64_t *key, struct listen_address *out, int peer, const void *data,
                  size_t bytes);

/* The rank of who said hello to rank `own` of `size`, which offered `key`: a higher one.
 * -1: a stranger. */
int hello_rank(const struct rank_hello *hello, uint64_t key, int own, int size);

#endif
