#include "coordinator/descriptors.h"

#include <stdio.h>
#include <string.h>

/* Field numbers of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    MESSAGE_ONEOF = 8,
    ENUM_VALUE = 2,
    SERVICE_METHOD = 2,
};

/* ---- the wire form ---- */

static bool read_varint(struct descriptor_slice *in, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; shift < 64 && in->bytes; shift += 7) {
        uint8_t byte = *in->data++;
        in->bytes--;
        *out |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80)) {
            return true;
        }
    }
    return false;
}

static bool skip(struct descriptor_slice *in, size_t bytes)
{
    if (bytes > in->bytes) {
        return false;
    }
    in->data += bytes;
    in->bytes -= bytes;
    return true;
}

/* The next length-delimited field; others are passed over.  False: the end. */
static bool next_field(struct descriptor_slice *in, int *number, struct descriptor_slice *value)
{
    uint64_t key, length;

    while (in->bytes && read_varint(in, &key)) {
        switch (key & 7) {
        case 0:
            if (!read_varint(in, &length)) {
                return false;
            }
            break;
        case 1:
        case 5:
            if (!skip(in, (key & 7) == 1 ? 8 : 4)) {
                return false;
            }
            break;
        case 2:
            *number = (int)(key >> 3);
            if (!read_varint(in, &length) || length > in->bytes) {
                return false;
            }
            *value = (struct descriptor_slice){in->data, (size_t)length};
            return skip(in, (size_t)length);
        default:
            return false;
        }
    }
    return false;
}

static struct descriptor_slice find_field(struct descriptor_slice in, int wanted)
{
    struct descriptor_slice value;
    int number;

    while (next_field(&in, &number, &value)) {
        if (number == wanted) {
            return value;
        }
    }
    return (struct descriptor_slice){NULL, 0};
}

static bool equals(struct descriptor_slice slice, const char *text, size_t bytes)
{
    return slice.bytes == bytes && (!bytes || memcmp(slice.data, text, bytes) == 0);
}

/* ---- names ---- */

/* What is left of a full name while it is followed inwards. */
struct path {
    const char *text;
    size_t bytes;
};

/* Takes "name." (or all of "name") off the front; false: it does not begin so. */
static bool enter(struct path *path, struct descriptor_slice name)
{
    if (!name.bytes || path->bytes < name.bytes || memcmp(path->text, name.data, name.bytes) != 0) {
        return false;
    }
    bool dot = path->bytes > name.bytes && path->text[name.bytes] == '.';
    if (path->bytes > name.bytes && !dot) {
        return false;
    }
    path->text += name.bytes + (dot ? 1 : 0);
    path->bytes -= name.bytes + (dot ? 1 : 0);
    return true;
}

/* A member with no members of its own: a field, a value, a method. */
static bool has_leaf(struct descriptor_slice in, int field, struct path path)
{
    struct descriptor_slice value;
    int number;

    while (next_field(&in, &number, &value)) {
        if (number == field && equals(find_field(value, ANY_NAME), path.text, path.bytes)) {
            return true;
        }
    }
    return false;
}

/* An enum's values are named beside it, not inside it. */
static bool enum_has(struct descriptor_slice in, struct path path)
{
    return equals(find_field(in, ANY_NAME), path.text, path.bytes) ||
           has_leaf(in, ENUM_VALUE, path);
}

static bool service_has(struct descriptor_slice in, struct path path)
{
    return enter(&path, find_field(in, ANY_NAME)) &&
           (!path.bytes || has_leaf(in, SERVICE_METHOD, path));
}

/* Types nest as deep as our own files say: these are not from outside. */
static bool message_has(struct descriptor_slice in, struct path path, bool types_only)
{
    struct descriptor_slice rest = in, value;
    int number;

    if (!enter(&path, find_field(in, ANY_NAME))) {
        return false;
    }
    if (!path.bytes) {
        return true;
    }
    while (next_field(&rest, &number, &value)) {
        if (number == MESSAGE_NESTED && message_has(value, path, types_only)) {
            return true;
        }
        if (number == MESSAGE_ENUM && !types_only && enum_has(value, path)) {
            return true;
        }
    }
    return !types_only && (has_leaf(in, MESSAGE_FIELD, path) || has_leaf(in, MESSAGE_ONEOF, path));
}

static bool file_has(const struct descriptor_file *file, struct path path, bool types_only)
{
    struct descriptor_slice rest = file->proto, value;
    int number;

    if (file->package.bytes && (!enter(&path, file->package) || !path.bytes)) {
        return false;
    }
    while (next_field(&rest, &number, &value)) {
        if (number == FILE_MESSAGE && message_has(value, path, types_only)) {
            return true;
        }
        if (!types_only && ((number == FILE_ENUM && enum_has(value, path)) ||
                            (number == FILE_SERVICE && service_has(value, path)))) {
            return true;
        }
    }
    return false;
}

/* ---- the set ---- */

bool descriptors_open(struct descriptors *out, const uint8_t *data, size_t bytes)
{
    struct descriptor_slice rest = {data, bytes}, value;
    int number;

    out->n_files = 0;
    while (next_field(&rest, &number, &value)) {
        if (number != SET_FILE || out->n_files == DESCRIPTORS_MAX_FILES) {
            return false;
        }
        struct descriptor_file *file = &out->files[out->n_files++];
        file->proto = value;
        file->name = find_field(value, FILE_NAME);
        file->package = find_field(value, FILE_PACKAGE);
    }
    return !rest.bytes && out->n_files > 0;
}

int descriptors_by_name(const struct descriptors *set, const char *name, size_t bytes)
{
    for (int i = 0; i < set->n_files; i++) {
        if (equals(set->files[i].name, name, bytes)) {
            return i;
        }
    }
    return -1;
}

int descriptors_by_symbol(const struct descriptors *set, const char *symbol, size_t bytes)
{
    for (int i = 0; i < set->n_files; i++) {
        if (bytes && file_has(&set->files[i], (struct path){symbol, bytes}, false)) {
            return i;
        }
    }
    return -1;
}

bool descriptors_has_message(const struct descriptors *set, const char *name, size_t bytes)
{
    for (int i = 0; i < set->n_files; i++) {
        if (bytes && file_has(&set->files[i], (struct path){name, bytes}, true)) {
            return true;
        }
    }
    return false;
}

int descriptors_with_imports(const struct descriptors *set, int file,
                             int out[DESCRIPTORS_MAX_FILES])
{
    bool taken[DESCRIPTORS_MAX_FILES] = {false};
    int n = 0;

    out[n++] = file;
    taken[file] = true;
    for (int i = 0; i < n; i++) { /* the list grows while it is walked */
        struct descriptor_slice rest = set->files[out[i]].proto, value;
        int number;
        while (next_field(&rest, &number, &value)) {
            int import = number == FILE_DEPENDENCY
                             ? descriptors_by_name(set, (const char *)value.data, value.bytes)
                             : -1;
            if (import >= 0 && !taken[import]) {
                taken[import] = true;
                out[n++] = import;
            }
        }
    }
    return n;
}

bool descriptors_next_service(const struct descriptors *set, int *file, int *index, char *out,
                              size_t out_size)
{
    for (; *file < set->n_files; (*file)++, *index = 0) {
        const struct descriptor_file *it = &set->files[*file];
        struct descriptor_slice rest = it->proto, value;
        int number, seen = 0;
        while (next_field(&rest, &number, &value)) {
            if (number == FILE_SERVICE && seen++ == *index) {
                struct descriptor_slice name = find_field(value, ANY_NAME);
                snprintf(out, out_size, "%.*s%s%.*s", (int)it->package.bytes,
                         (const char *)it->package.data, it->package.bytes ? "." : "",
                         (int)name.bytes, (const char *)name.data);
                (*index)++;
                return true;
            }
        }
    }
    return false;
}
