#include "worker/comm_hello.h"

#include <stdbool.h>
#include <string.h>

/* Printable and without blanks, so that it can stand in a sentence. */
static bool is_word(const char *text)
{
    while (*text > ' ' && *text < 0x7f) {
        text++;
    }
    return !*text;
}

status offer_read(uint64_t *key, struct listen_address *out, int peer, const void *data,
                  size_t bytes)
{
    struct rank_offer offer;

    if (bytes != sizeof(offer)) {
        return status_fail(STATUS_UNAVAILABLE, "rank %d published %zu bytes as its address", peer,
                           bytes);
    }
    memcpy(&offer, data, sizeof(offer));
    if (!memchr(offer.address, 0, sizeof(offer.address)) || !is_word(offer.address)) {
        return status_fail(STATUS_UNAVAILABLE, "rank %d published an address that is none", peer);
    }
    *key = offer.key;
    return listen_parse(out, offer.address)
               ? status_note(STATUS_UNAVAILABLE, "rank %d's address", peer)
               : STATUS_OK;
}

int hello_rank(const struct rank_hello *hello, uint64_t key, int own, int size)
{
    int64_t rank = hello->rank;

    return hello->key == key && !hello->zero && rank > own && rank < size ? (int)rank : -1;
}
