#include "common/keyring.h"

#include "common/file.h"
#include "common/log.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct key {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    struct keyring_owner owner;
};

struct keys {
    int n;
    char first[KEYRING_MAX_SECRET + 1];
    struct key keys[KEYRING_MAX_KEYS];
};

struct keyring {
    char *path;
    bool named;
    pthread_mutex_t lock; /* guards what follows */
    struct file_stamp stamp;
    struct keys *keys;
};

/* ---- one file's text ---- */

static bool is_word(const char *word, size_t max)
{
    size_t n = 0;

    for (; word[n]; n++) {
        if (word[n] <= 0x20 || word[n] >= 0x7f) {
            return false;
        }
    }
    return n > 0 && n <= max;
}

static void digest_of(unsigned char out[SHA256_DIGEST_LENGTH], const char *secret)
{
    SHA256((const unsigned char *)secret, strlen(secret), out);
}

static bool holds(const struct keys *keys, const unsigned char *digest)
{
    for (int i = 0; i < keys->n; i++) {
        if (memcmp(keys->keys[i].digest, digest, SHA256_DIGEST_LENGTH) == 0) {
            return true;
        }
    }
    return false;
}

static status add_key(struct keys *keys, const char *name, const char *secret, bool admin)
{
    struct key *key = &keys->keys[keys->n];

    if (!is_word(secret, KEYRING_MAX_SECRET)) {
        return status_fail(STATUS_INVALID, "the secret is not 1 to %d printable characters",
                           KEYRING_MAX_SECRET);
    }
    if (*name && !is_word(name, KEYRING_MAX_NAME)) {
        return status_fail(STATUS_INVALID, "the name is not 1 to %d printable characters",
                           KEYRING_MAX_NAME);
    }
    if (strlen(secret) < KEYRING_SHORT) {
        log_warn("keyring: short secret name=\"%s\" bytes=%zu advice=\"take %d or more at random\"",
                 name, strlen(secret), KEYRING_SHORT);
    }
    digest_of(key->digest, secret);
    if (holds(keys, key->digest)) {
        return status_fail(STATUS_INVALID, "the secret has another line already");
    }
    if (!keys->n) {
        memcpy(keys->first, secret, strlen(secret) + 1);
    }
    memcpy(key->owner.name, name, strlen(name) + 1);
    key->owner.admin = admin;
    keys->n++;
    return STATUS_OK;
}

/* Cuts the line into its words; more than `max` are counted only. */
static int split(char *line, char **words, int max)
{
    char *rest = NULL;
    int n = 0;

    for (char *word = strtok_r(line, " \t\r", &rest); word; word = strtok_r(NULL, " \t\r", &rest)) {
        if (n < max) {
            words[n] = word;
        }
        n++;
    }
    return n;
}

static status parse_line(struct keys *keys, char *line, bool named)
{
    char *words[3];
    int n = split(line, words, 3);

    if (n == 0 || words[0][0] == '#') {
        return STATUS_OK;
    }
    if (keys->n == KEYRING_MAX_KEYS) {
        return status_fail(STATUS_INVALID, "more than %d secrets", KEYRING_MAX_KEYS);
    }
    if (n == 1 && !named) {
        return add_key(keys, "", words[0], false);
    }
    if (n == 2 || (n == 3 && strcmp(words[2], "admin") == 0)) {
        return add_key(keys, words[0], words[1], n == 3);
    }
    return status_fail(STATUS_INVALID, "a line is %sNAME SECRET or NAME SECRET admin",
                       named ? "" : "SECRET, ");
}

static status parse(struct keys *keys, const char *path, char *text, size_t bytes, bool named)
{
    char *next = text;
    status st = memchr(text, 0, bytes) ? status_fail(STATUS_INVALID, "not a text file") : STATUS_OK;

    for (int number = 1; !st && next; number++) {
        char *line = next;
        next = strchr(line, '\n');
        if (next) {
            *next++ = '\0';
        }
        st = parse_line(keys, line, named);
        if (st) {
            st = status_note(st, "line %d", number);
        }
    }
    if (!st && !keys->n) {
        st = status_fail(STATUS_INVALID, "no secret in it");
    }
    return st ? status_note(st, "%s", path) : STATUS_OK;
}

/* ---- the file ---- */

static void free_keys(struct keys *keys)
{
    if (keys) {
        OPENSSL_cleanse(keys, sizeof(*keys));
        free(keys);
    }
}

static status load(struct keyring *ring)
{
    struct keys *keys = calloc(1, sizeof(*keys));
    char *text = NULL;
    size_t bytes = 0;

    if (!keys) {
        return status_fail(STATUS_EXHAUSTED, "%s: no memory for its secrets", ring->path);
    }
    status st = file_read(&text, &bytes, ring->path, KEYRING_MAX_FILE);
    if (!st) {
        st = parse(keys, ring->path, text, bytes, ring->named);
        OPENSSL_cleanse(text, bytes);
        free(text);
    }
    if (st) {
        free_keys(keys);
        return st;
    }
    free_keys(ring->keys);
    ring->keys = keys;
    if (ring->stamp.for_everyone) {
        log_warn("keyring: every user of this machine can read file=%s advice=\"chmod 600\"",
                 ring->path);
    }
    return STATUS_OK;
}

/* With the lock held.  The stamp is taken first: what is written meanwhile is seen the next time.
 */
static void refresh(struct keyring *ring)
{
    struct file_stamp stamp = {0}; /* stays so if the file is away */
    status st = file_stamp_take(&stamp, ring->path);

    if (file_stamp_same(&stamp, &ring->stamp)) {
        return;
    }
    ring->stamp = stamp;
    if (!st) {
        st = load(ring);
    }
    if (st) {
        log_warn("keyring: the secrets stay as they were reason=\"%s\"", status_text());
    } else {
        log_info("keyring: read again file=%s secrets=%d", ring->path, ring->keys->n);
    }
}

status keyring_open(struct keyring **out, const char *path, bool named)
{
    struct keyring *ring = calloc(1, sizeof(*ring));

    if (!ring) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the secrets of %s", path);
    }
    pthread_mutex_init(&ring->lock, NULL);
    ring->named = named;
    ring->path = strdup(path);
    status st = ring->path ? file_stamp_take(&ring->stamp, path)
                           : status_fail(STATUS_EXHAUSTED, "no memory for the path %s", path);
    if (!st) {
        st = load(ring);
    }
    if (st) {
        keyring_close(ring);
        return st;
    }
    *out = ring;
    return STATUS_OK;
}

void keyring_close(struct keyring *ring)
{
    if (!ring) {
        return;
    }
    free_keys(ring->keys);
    pthread_mutex_destroy(&ring->lock);
    free(ring->path);
    free(ring);
}

bool keyring_find(struct keyring *ring, const char *secret, struct keyring_owner *out)
{
    unsigned char digest[SHA256_DIGEST_LENGTH];
    bool found = false;

    digest_of(digest, secret);
    pthread_mutex_lock(&ring->lock);
    refresh(ring);
    for (int i = 0; i < ring->keys->n; i++) { /* all of them, wherever it is */
        if (CRYPTO_memcmp(digest, ring->keys->keys[i].digest, sizeof(digest)) == 0) {
            *out = ring->keys->keys[i].owner;
            found = true;
        }
    }
    pthread_mutex_unlock(&ring->lock);
    return found;
}

void keyring_first(struct keyring *ring, char out[KEYRING_MAX_SECRET + 1])
{
    pthread_mutex_lock(&ring->lock);
    refresh(ring);
    memcpy(out, ring->keys->first, KEYRING_MAX_SECRET + 1);
    pthread_mutex_unlock(&ring->lock);
}
