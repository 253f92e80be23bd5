#include "common/machine.h"

#include "common/file.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_PATH = 4096, MAX_TEXT = 8192, FALLBACK_CORES = 1 };

/* The first bytes of a file of the kernel, whose size is told as 0; false: there is none. */
static bool read_text(char text[MAX_TEXT], const char *folder, const char *name)
{
    char path[MAX_PATH];
    FILE *file = file_join(path, sizeof(path), folder, name) ? NULL : fopen(path, "re");

    if (!file) {
        return false;
    }
    text[fread(text, 1, MAX_TEXT - 1, file)] = '\0';
    fclose(file);
    return true;
}

/* A number at the beginning of a text, and where it ends; false: there is none, as in "max". */
static bool take_number(uint64_t *out, const char **text)
{
    char *end;

    errno = 0;
    *out = strtoull(*text, &end, 10);
    if (end == *text || errno) {
        return false;
    }
    *text = end;
    return true;
}

static bool read_number(uint64_t *out, const char *folder, const char *name)
{
    char text[MAX_TEXT];
    const char *at = text;

    return read_text(text, folder, name) && take_number(out, &at);
}

static int affinity_cores(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more cores than the set has places */
    return online > 0 ? (int)online : FALLBACK_CORES;
}

/* "QUOTA PERIOD" in microseconds, or "max PERIOD". */
static int limit_cores(int cores, const char *cgroup)
{
    char text[MAX_TEXT];
    const char *at = text;
    uint64_t quota;
    uint64_t period;

    if (!read_text(text, cgroup, "cpu.max") || !take_number(&quota, &at) ||
        !take_number(&period, &at) || period == 0) {
        return cores;
    }
    uint64_t whole = quota / period + (quota % period != 0);
    return whole < 1 ? 1 : whole < (uint64_t)cores ? (int)whole : cores;
}

static uint64_t pages(int name)
{
    long n = sysconf(name);

    return n > 0 ? (uint64_t)n * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

struct machine machine_look_in(const char *cgroup)
{
    struct machine out = {
        .cores = limit_cores(affinity_cores(), cgroup),
        .memory_bytes = pages(_SC_PHYS_PAGES),
        .free_bytes = pages(_SC_AVPHYS_PAGES),
    };
    uint64_t limit;
    uint64_t used;

    if (read_number(&limit, cgroup, "memory.max") && read_number(&used, cgroup, "memory.current")) {
        uint64_t left = used < limit ? limit - used : 0;
        out.memory_bytes = limit < out.memory_bytes ? limit : out.memory_bytes;
        out.free_bytes = left < out.free_bytes ? left : out.free_bytes;
    }
    return out;
}

struct machine machine_look(void)
{
    static const char root[] = "/sys/fs/cgroup";
    char folder[MAX_PATH];
    char text[MAX_TEXT];
    const char *line = read_text(text, "/proc/self", "cgroup") ? strstr(text, "0::") : NULL;
    int length = line ? (int)strcspn(line + 3, "\n") : 0; /* of the path in version 2's line */
    int n = snprintf(folder, sizeof(folder), "%s%.*s", root, length, line ? line + 3 : "");

    return machine_look_in(n < (int)sizeof(folder) ? folder : root);
}

uint64_t machine_peak_memory(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss << 10 : 0;
}
