/* fiber_x86_64.cc - the switch saves what the System V ABI lets a callee change: six registers and
 * the stack pointer.  (ucontext would make two system calls.) */
#include "tests/cuda_host/fiber.h"

#include <cstdint>
#include <cstring>

extern "C" void cuda_host_switch(void **save, void *load);

asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_host_switch, .-cuda_host_switch
)");

void fiber_prepare(fiber *f, void *stack, size_t bytes, void (*entry)())
{
    auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
    /* six registers, then the return address; one word more so that entry() is aligned as if it
     * had been called */
    auto *words = reinterpret_cast<void **>(top) - 8;

    memset(words, 0, 8 * sizeof(*words));
    memcpy(&words[6], &entry, sizeof(entry));
    f->place = words;
}

void fiber_switch(fiber *from, fiber *to)
{
    cuda_host_switch(&from->place, to->place);
}
