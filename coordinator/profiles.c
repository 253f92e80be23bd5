#include "coordinator/profiles.h"

#include "common/file.h"
#include "common/json.h"
#include "common/log.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PATH = 4096, MAX_NAMES_TEXT = 200 };

struct profile {
    char name[PROFILES_MAX_NAME + 1];
    float *scores;
};

struct profiles {
    int n;
    struct profile items[PROFILES_MAX]; /* by name */
};

/* "NAME.json", but not hidden; NAME goes to `out`. */
static bool is_profile(char *out, const char *file)
{
    size_t bytes = strlen(file);

    if (bytes <= 5 || file[0] == '.' || strcmp(file + bytes - 5, ".json") != 0) {
        return false;
    }
    if (bytes - 5 > PROFILES_MAX_NAME) {
        log_warn("profiles: name too long file=\"%s\" limit=%d", file, PROFILES_MAX_NAME);
        return false;
    }
    snprintf(out, PROFILES_MAX_NAME + 1, "%.*s", (int)(bytes - 5), file);
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct profile *)a)->name, ((const struct profile *)b)->name);
}

static status list_names(struct profiles *profiles, const char *dir)
{
    DIR *list = opendir(dir);
    const struct dirent *entry;
    status st = STATUS_OK;

    if (!list) {
        return status_fail(STATUS_NOT_FOUND, "%s: %s", dir, strerror(errno));
    }
    while (!st && (entry = readdir(list))) {
        char name[PROFILES_MAX_NAME + 1];
        if (!is_profile(name, entry->d_name)) {
            continue;
        }
        if (profiles->n == PROFILES_MAX) {
            st = status_fail(STATUS_EXHAUSTED, "%s: more than %d profiles", dir, PROFILES_MAX);
        } else {
            memcpy(profiles->items[profiles->n++].name, name, sizeof(name));
        }
    }
    closedir(list);
    qsort(profiles->items, (size_t)profiles->n, sizeof(profiles->items[0]), by_name);
    return st;
}

/* The mean of a head's list. */
static status read_head(float *out, const cJSON *list, const char *path)
{
    const cJSON *item;
    double sum = 0;

    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || !isfinite(item->valuedouble)) {
            return status_fail(STATUS_INVALID, "%s: %s: scores are finite and not negative", path,
                               list->string);
        }
        sum += item->valuedouble;
    }
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) == 0) {
        return status_fail(STATUS_INVALID, "%s: %s: a list of scores is expected", path,
                           list->string);
    }
    *out = (float)(sum / cJSON_GetArraySize(list));
    if (!isfinite(*out)) {
        return status_fail(STATUS_INVALID, "%s: %s: the scores are too large", path, list->string);
    }
    return STATUS_OK;
}

static status read_heads(float *scores, const cJSON *object, const struct model_config *model,
                         const char *path)
{
    const cJSON *list;
    int at = 0;

    cJSON_ArrayForEach(list, object)
    {
        char key[32];
        snprintf(key, sizeof(key), "%d-%d", at / model->query_heads, at % model->query_heads);
        if (strcmp(list->string, key) != 0) {
            return status_fail(STATUS_INVALID, "%s: \"%.32s\" is where \"%s\" is expected", path,
                               list->string, key);
        }
        status st = read_head(&scores[at++], list, path);
        if (st) {
            return st;
        }
    }
    return STATUS_OK;
}

/* *out stays NULL when the table has another shape than the model. */
static status read_profile(float **out, const char *path, const struct model_config *model)
{
    int heads = model->layers * model->query_heads;
    cJSON *object = NULL;
    float *scores = NULL;
    char *text = NULL;
    size_t bytes;
    status st = file_read(&text, &bytes, path, PROFILES_MAX_BYTES);

    if (!st) {
        st = json_parse(&object, path, text, bytes);
    }
    if (st) {
        goto out;
    }
    if (cJSON_GetArraySize(object) != heads) {
        log_info("profiles: not for this model file=%s heads=%d wanted=%d", path,
                 cJSON_GetArraySize(object), heads);
        goto out;
    }
    scores = calloc((size_t)heads, sizeof(*scores));
    if (!scores) {
        st = status_fail(STATUS_EXHAUSTED, "%s: out of memory", path);
        goto out;
    }
    st = read_heads(scores, object, model, path);
    if (!st) {
        *out = scores;
        scores = NULL; /* ownership moved to the caller */
    }
out:
    free(scores);
    cJSON_Delete(object);
    free(text);
    return st;
}

status profiles_open(struct profiles **out, const char *dir, const struct model_config *model)
{
    struct profiles *profiles = calloc(1, sizeof(*profiles));

    if (!profiles) {
        return status_fail(STATUS_EXHAUSTED, "profiles: out of memory");
    }
    status st = list_names(profiles, dir);
    for (int i = 0; !st && i < profiles->n; i++) {
        char path[MAX_PATH];
        char file[PROFILES_MAX_NAME + 6];
        snprintf(file, sizeof(file), "%s.json", profiles->items[i].name);
        st = file_join(path, sizeof(path), dir, file);
        if (!st) {
            st = read_profile(&profiles->items[i].scores, path, model);
        }
    }
    if (st) {
        profiles_close(profiles);
        return st;
    }
    *out = profiles;
    return STATUS_OK;
}

void profiles_close(struct profiles *profiles)
{
    if (!profiles) {
        return;
    }
    for (int i = 0; i < profiles->n; i++) {
        free(profiles->items[i].scores);
    }
    free(profiles);
}

/* The names that fit the model, as many as a sentence holds. */
static void list_known(char *out, const struct profiles *profiles)
{
    const char *before = "";

    snprintf(out, MAX_NAMES_TEXT, "none");
    for (int i = 0, at = 0; i < profiles->n; i++) {
        if (!profiles->items[i].scores) {
            continue;
        }
        int used = snprintf(out + at, (size_t)(MAX_NAMES_TEXT - at), "%s%s", before,
                            profiles->items[i].name);
        if (used >= MAX_NAMES_TEXT - at) {
            return; /* cut off */
        }
        at += used;
        before = ", ";
    }
}

status profiles_find(const struct profiles *profiles, const char *name, size_t name_bytes,
                     const float **scores)
{
    char known[MAX_NAMES_TEXT];

    for (int i = 0; i < profiles->n; i++) {
        const struct profile *profile = &profiles->items[i];
        if (profile->scores && strlen(profile->name) == name_bytes &&
            memcmp(profile->name, name, name_bytes) == 0) {
            *scores = profile->scores;
            return STATUS_OK;
        }
    }
    if (name_bytes > PROFILES_MAX_NAME) {
        return status_fail(STATUS_INVALID,
                           "compression.headkv.profile has %zu bytes; no name is that long",
                           name_bytes);
    }
    list_known(known, profiles);
    return status_fail(STATUS_INVALID,
                       "compression.headkv.profile: no profile \"%.*s\"; this server has: %s",
                       (int)name_bytes, name, known);
}
