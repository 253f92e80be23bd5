#include "tests/cuda_host/memory.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>

namespace
{

constexpr size_t alignment = 256;
constexpr size_t page = 4096;
constexpr size_t most = size_t{8} << 30;

struct memory {
    std::mutex mutex;
    std::map<uintptr_t, size_t> live; /* begin: bytes */
    size_t used = 0;
    size_t total = most;

    /* Of the range: what was given out ends before `end`; gaps are used again. */
    char *range = nullptr;
    size_t end = 0;
    std::map<size_t, size_t> gaps; /* offset: bytes */
    int running = 0;               /* pieces of work */

    void protect(int how)
    {
        size_t pages = (end + page - 1) / page * page;

        if (pages && mprotect(range, pages, how)) {
            perror("cuda_host: mprotect");
            abort();
        }
    }

    size_t take(size_t bytes)
    {
        for (auto it = gaps.begin(); it != gaps.end(); ++it) {
            auto [at, size] = *it;
            if (size >= bytes) {
                gaps.erase(it);
                if (size > bytes) {
                    gaps[at + bytes] = size - bytes;
                }
                return at;
            }
        }
        size_t at = end;
        end += bytes;
        return at;
    }

    void give_back(size_t at, size_t bytes)
    {
        auto next = gaps.lower_bound(at);

        if (next != gaps.end() && at + bytes == next->first) {
            bytes += next->second;
            next = gaps.erase(next);
        }
        if (next != gaps.begin()) {
            auto before = std::prev(next);
            if (before->first + before->second == at) {
                before->second += bytes;
                return;
            }
        }
        gaps[at] = bytes;
    }
};

memory &all()
{
    static memory m;
    return m;
}

size_t rounded(size_t bytes)
{
    return ((bytes ? bytes : 1) + alignment - 1) / alignment * alignment;
}

} // namespace

void cuda_host_memory_keep_apart(bool apart)
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);

    if (!apart || m.range) {
        return;
    }
    void *range =
        mmap(nullptr, 2 * most, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
        perror("cuda_host: mmap");
        abort();
    }
    m.range = static_cast<char *>(range);
    (void)madvise(range, 2 * most, MADV_HUGEPAGE); /* less to protect */
}

void cuda_host_memory_limit(size_t total)
{
    all().total = total;
}

size_t cuda_host_memory_total()
{
    return all().total;
}

void *cuda_host_memory_new(size_t bytes)
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);
    void *out = nullptr;

    if (bytes > m.total - m.used) {
        return nullptr;
    }
    if (m.range) {
        out = m.range + m.take(rounded(bytes));
        m.protect(m.running ? PROT_READ | PROT_WRITE : PROT_NONE);
    } else if (posix_memalign(&out, alignment, bytes ? bytes : 1)) {
        return nullptr;
    }
    m.live[reinterpret_cast<uintptr_t>(out)] = bytes;
    m.used += bytes;
    return out;
}

bool cuda_host_memory_delete(void *address)
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);
    auto it = m.live.find(reinterpret_cast<uintptr_t>(address));

    if (it == m.live.end()) {
        return false;
    }
    if (m.range) {
        m.give_back(static_cast<size_t>(static_cast<char *>(address) - m.range),
                    rounded(it->second));
    } else {
        free(address);
    }
    m.used -= it->second;
    m.live.erase(it);
    return true;
}

bool cuda_host_memory_holds(const void *address, size_t bytes)
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);
    auto at = reinterpret_cast<uintptr_t>(address);
    auto it = m.live.upper_bound(at);

    if (it == m.live.begin()) {
        return false;
    }
    --it;
    return at + bytes <= it->first + it->second;
}

size_t cuda_host_memory_free()
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);

    return m.total - m.used;
}

void cuda_host_memory_enter()
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);

    if (m.range && m.running++ == 0) {
        m.protect(PROT_READ | PROT_WRITE);
    }
}

void cuda_host_memory_leave()
{
    memory &m = all();
    std::lock_guard<std::mutex> lock(m.mutex);

    if (m.range && --m.running == 0) {
        m.protect(PROT_NONE);
    }
}
