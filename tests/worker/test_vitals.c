/* What a worker says of its health: ready in a group, alive while it gets on. */
#include "common/rpc.h"
#include "tests/check.h"
#include "worker/vitals.h"

static void test_a_rank_is_alive_while_it_is_idle_or_gets_on(void **state)
{
    const struct vitals_config config = {.http = "", .health_listen = "", .model_name = "m"};
    const struct step_result result = {.compute_ms = 5};
    struct vitals *vitals = NULL;

    (void)state;
    CHECK_OK(vitals_open(&vitals, &config));
    CHECK(vitals_is_alive(vitals, 1e9, 100));
    vitals_begin_step(vitals, 1000);
    CHECK(vitals_is_alive(vitals, 1099, 100));
    CHECK(!vitals_is_alive(vitals, 1100, 100));
    vitals_end_step(vitals, &result);
    CHECK(vitals_is_alive(vitals, 1100, 100));
    vitals_begin_step(vitals, 2000);
    vitals_end_step(vitals, NULL); /* it failed, and the rank goes on */
    CHECK(vitals_is_alive(vitals, 9000, 100));
    vitals_close(vitals);
    vitals_close(NULL);
}

static void test_addresses_that_cannot_be_listened_on_are_named(void **state)
{
    struct vitals_config config = {.http = "nonsense", .health_listen = "", .model_name = "m"};
    struct vitals *vitals = NULL;

    (void)state;
    CHECK_FAILS(vitals_open(&vitals, &config), STATUS_INVALID, "--http: cannot listen on nonsense");
    config = (struct vitals_config){.http = "", .health_listen = "none", .model_name = "m"};
    CHECK_FAILS(vitals_open(&vitals, &config), STATUS_INVALID,
                "--health-listen: cannot listen on none");
    CHECK(!vitals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rank_is_alive_while_it_is_idle_or_gets_on),
        cmocka_unit_test(test_addresses_that_cannot_be_listened_on_are_named),
    };

    rpc_init();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_fini();
    return failed;
}
