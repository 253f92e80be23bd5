/* fiber.h - a stack of its own for every emulated CUDA thread, and the switch between them. */
#ifndef TESTS_CUDA_HOST_FIBER_H
#define TESTS_CUDA_HOST_FIBER_H

#include <cstddef>

struct fiber {
    void *place; /* where it goes on */
};

/* The fiber's next switch calls entry(), which must not return. */
void fiber_prepare(fiber *f, void *stack, size_t bytes, void (*entry)());

/* Leaves `from`, goes on with `to`. */
void fiber_switch(fiber *from, fiber *to);

#endif
