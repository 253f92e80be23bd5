/* fiber_ucontext.cc - for processors without a switch of their own. */
#include "tests/cuda_host/fiber.h"

#include <cstdlib>
#include <ucontext.h>

static ucontext_t *context_of(fiber *f)
{
    if (!f->place) {
        f->place = calloc(1, sizeof(ucontext_t));
    }
    return static_cast<ucontext_t *>(f->place);
}

void fiber_prepare(fiber *f, void *stack, size_t bytes, void (*entry)())
{
    ucontext_t *context = context_of(f);

    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = bytes;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}

void fiber_switch(fiber *from, fiber *to)
{
    swapcontext(context_of(from), context_of(to));
}
