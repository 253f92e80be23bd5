/* Documents: a text file, a folder of them, or one JSON object a line. */
#include "cli/bench/dataset.h"
#include "cli/input.h"
#include "common/file.h"
#include "common/json.h"
#include "common/utf8.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Takes the text. */
static status add_text(struct dataset *dataset, char *text, size_t bytes, int64_t output_len)
{
    struct dataset_item *item = NULL;
    status st = dataset_keep_text(dataset, text);

    st = st ? st : dataset_add(dataset, &item);
    if (st) {
        return st;
    }
    item->text = text;
    item->bytes = bytes;
    item->n_output = (uint32_t)output_len;
    return STATUS_OK;
}

static status read_document(struct dataset *dataset, const char *path)
{
    struct input_text text = {0};
    status st = input_prompt(&text, path, dataset->config.prompt);

    if (!st && text.bytes == 0) {
        free(text.data);
        return status_fail(STATUS_INVALID, "%s: is empty", path);
    }
    return st ? st : add_text(dataset, text.data, text.bytes, dataset->config.output_len);
}

/* Not hidden ones; in the order of their names. */
static status read_folder(struct dataset *dataset, const char *path)
{
    struct dirent **entries = NULL;
    int n = scandir(path, &entries, NULL, alphasort);
    char file[PATH_MAX];
    struct stat info;
    status st = n < 0 ? status_fail(STATUS_NOT_FOUND, "%s: cannot be read", path) : STATUS_OK;

    for (int i = 0; i < n; i++) {
        if (!st && entries[i]->d_name[0] != '.') {
            st = file_join(file, sizeof(file), path, entries[i]->d_name);
            if (!st && stat(file, &info) == 0 && S_ISREG(info.st_mode)) {
                st = read_document(dataset, file);
            }
        }
        free(entries[i]);
    }
    free(entries);
    return st;
}

static status read_prompt(struct dataset *dataset, struct json_reader *reader)
{
    const struct dataset_config *c = &dataset->config;
    const char *prompt = json_string_or_null(reader, "prompt");
    int output_len =
        json_int_or(reader, "output_tokens", 1, DATASET_MAX_TOKENS, (int)c->output_len);

    if (reader->st) {
        return reader->st;
    }
    if (!prompt || !*prompt || !utf8_is_valid(prompt, strlen(prompt))) {
        return status_fail(STATUS_INVALID, "%s: \"prompt\" is to be a text", reader->file);
    }
    char *text = strdup(prompt);
    if (!text) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the data set");
    }
    return add_text(dataset, text, strlen(text), c->fixed_output ? c->output_len : output_len);
}

static status read_line(struct dataset *dataset, const char *where, const char *line, size_t bytes,
                        dataset_line *read)
{
    cJSON *object = NULL;
    status st = json_parse(&object, where, line, bytes);

    if (!st) {
        struct json_reader reader = {.object = object, .file = where, .prefix = ""};
        st = read(dataset, &reader);
        cJSON_Delete(object);
    }
    return st;
}

status dataset_each_line(struct dataset *dataset, dataset_line *read)
{
    const char *path = dataset->config.path;
    char *text = NULL;
    size_t bytes = 0;
    char where[PATH_MAX];
    int number = 0;
    status st = file_read(&text, &bytes, path, DATASET_MAX_FILE);

    for (char *line = text; !st && line && line < text + bytes;) {
        char *end = memchr(line, '\n', (size_t)(text + bytes - line));
        size_t length = (size_t)((end ? end : text + bytes) - line);
        snprintf(where, sizeof(where), "%s:%d", path, ++number);
        if (strspn(line, " \t\r") < length) {
            st = read_line(dataset, where, line, length, read);
        }
        line = end ? end + 1 : NULL;
    }
    free(text);
    return st;
}

status dataset_read_file(struct dataset *dataset)
{
    const char *path = dataset->config.path;
    size_t length = strlen(path);
    struct stat info;

    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        return read_folder(dataset, path);
    }
    if (length > 6 && strcmp(path + length - 6, ".jsonl") == 0) {
        return dataset_each_line(dataset, read_prompt);
    }
    return read_document(dataset, path);
}
