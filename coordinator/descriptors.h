/*
 * descriptors.h - finds files, services and symbols in an encoded FileDescriptorSet.
 *
 * The set is the one that the build embeds; it is walked in its wire form, nothing is unpacked
 * and nothing is copied.
 */
#ifndef COORDINATOR_DESCRIPTORS_H
#define COORDINATOR_DESCRIPTORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DESCRIPTORS_MAX_FILES = 64 };

struct descriptor_slice {
    const uint8_t *data;
    size_t bytes;
};

struct descriptor_file {
    struct descriptor_slice proto; /* the encoded FileDescriptorProto */
    struct descriptor_slice name;
    struct descriptor_slice package;
};

struct descriptors {
    struct descriptor_file files[DESCRIPTORS_MAX_FILES];
    int n_files;
};

/* False: not a set, or more than DESCRIPTORS_MAX_FILES.  `data` is borrowed. */
bool descriptors_open(struct descriptors *out, const uint8_t *data, size_t bytes);

/* The file's index, or -1. */
int descriptors_by_name(const struct descriptors *set, const char *name, size_t bytes);
/* Messages, fields, enums, their values, services, methods; all by their full name. */
int descriptors_by_symbol(const struct descriptors *set, const char *symbol, size_t bytes);
/* A message type of that full name exists. */
bool descriptors_has_message(const struct descriptors *set, const char *name, size_t bytes);

/* Fills `out` with the file and everything it imports, each once; returns how many. */
int descriptors_with_imports(const struct descriptors *set, int file,
                             int out[DESCRIPTORS_MAX_FILES]);

/* The next service at or behind (*file, *index) as "package.Name"; false: no more. */
bool descriptors_next_service(const struct descriptors *set, int *file, int *index, char *out,
                              size_t out_size);

#endif
