/*
 * helpers_gpus.h - the same tests on GPUs: $WINNOW_TEST_GPUS says how many there are.
 *
 * Without it ranks compute on the CPU, and nothing here does anything.
 */
#ifndef TESTS_WORKER_HELPERS_GPUS_H
#define TESTS_WORKER_HELPERS_GPUS_H

#include "common/model_config.h"

/* 0: the CPU is meant. */
int gpus_count(void);

/* A GPU for each rank of the groups that follow, until gpus_close(). */
void gpus_open(int ranks, enum dtype dtype);
void gpus_close(void);

#endif
