/* What ranks tell each other to get connected: an offer is refused with a sentence or has an
 * address in one line that reads the same again; a hello is a stranger's or a higher rank's.
 */
#include "worker/comm_hello.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN = 1, SIZE = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(int holds)
{
    if (!holds) {
        abort();
    }
}

static int is_line(const char *text)
{
    while (*text >= ' ' && *text < 0x7f) {
        text++;
    }
    return !*text;
}

static void check_offer(const uint8_t *data, size_t bytes)
{
    struct listen_address address, again;
    char text[sizeof(address.host) + sizeof(address.port) + 4];
    uint64_t key;

    if (offer_read(&key, &address, OWN, data, bytes)) {
        require(strlen(status_text()) > 0 && is_line(status_text()));
        return;
    }
    require(bytes == sizeof(struct rank_offer) && memcmp(&key, data, sizeof(key)) == 0);
    require(strlen(address.host) > 0 && is_line(address.host));
    require(strlen(address.port) > 0 && strspn(address.port, "0123456789") == strlen(address.port));
    snprintf(text, sizeof(text), "[%s]:%s", address.host, address.port);
    require(!listen_parse(&again, text) && strcmp(again.host, address.host) == 0 &&
            strcmp(again.port, address.port) == 0);
}

/* The key that was offered comes first. */
static void check_hello(const uint8_t *data, size_t bytes)
{
    struct rank_hello hello;
    uint64_t key;

    if (bytes != sizeof(key) + sizeof(hello)) {
        return;
    }
    memcpy(&key, data, sizeof(key));
    memcpy(&hello, data + sizeof(key), sizeof(hello));
    int rank = hello_rank(&hello, key, OWN, SIZE);
    require(rank == -1 || (rank > OWN && rank < SIZE && key == hello.key));
    require(rank == -1 || (uint32_t)rank == hello.rank);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    check_offer(data, bytes);
    check_hello(data, bytes);
    return 0;
}
