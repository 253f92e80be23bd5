#include "common/machine.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/test_machine.XXXXXX";

static void write_file(const char *name, const char *text)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void remove_file(const char *name)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    CHECK(unlink(path) == 0);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static void test_without_a_control_group_the_machine_is_the_limit(void **state)
{
    struct machine here = machine_look_in(folder);

    (void)state;
    CHECK(here.cores >= 1 && here.cores <= sysconf(_SC_NPROCESSORS_CONF));
    CHECK(here.memory_bytes == (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)getpagesize());
    CHECK(here.free_bytes > 0 && here.free_bytes <= here.memory_bytes);
    here = machine_look();
    CHECK(here.cores >= 1 && here.memory_bytes > 0);
}

static void test_limits_of_a_container_count(void **state)
{
    (void)state;
    write_file("cpu.max", "50000 100000\n");
    write_file("memory.max", "67108864\n");
    write_file("memory.current", "60000000\n");
    struct machine here = machine_look_in(folder);
    CHECK(here.cores == 1); /* half a core is one thread */
    CHECK(here.memory_bytes == 67108864 && here.free_bytes == 7108864);
    write_file("memory.current", "99999999\n"); /* it may be over for a moment */
    CHECK(machine_look_in(folder).free_bytes == 0);
    remove_file("cpu.max");
    remove_file("memory.max");
    remove_file("memory.current");
}

static void test_no_limit_and_nonsense_change_nothing(void **state)
{
    struct machine machine = machine_look_in(folder);

    (void)state;
    static const char *const texts[] = {"max 100000\n", "", "x", "0 0\n", "99999999999 100000\n"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        write_file("cpu.max", texts[i]);
        write_file("memory.max", i ? "" : "max\n");
        write_file("memory.current", "5\n");
        struct machine here = machine_look_in(folder);
        CHECK(here.cores == machine.cores && here.memory_bytes == machine.memory_bytes);
    }
    remove_file("cpu.max");
    remove_file("memory.max");
    remove_file("memory.current");
}

static void test_the_peak_of_memory_holds_what_was_touched(void **state)
{
    enum { BYTES = 32 << 20 };
    char *touched = malloc(BYTES);

    (void)state;
    CHECK(touched);
    memset(touched, 1, BYTES);
    __asm__ volatile("" : : "r"(touched) : "memory");
    uint64_t peak = machine_peak_memory();
    CHECK(peak >= BYTES && peak <= machine_look().memory_bytes);
    free(touched);
    CHECK(machine_peak_memory() >= peak);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_control_group_the_machine_is_the_limit),
        cmocka_unit_test(test_limits_of_a_container_count),
        cmocka_unit_test(test_no_limit_and_nonsense_change_nothing),
        cmocka_unit_test(test_the_peak_of_memory_holds_what_was_touched),
    };

    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
