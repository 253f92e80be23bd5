/* kv.cu - rows of keys and values into, within and out of the pages of the cache.  head_dim is a
 * multiple of 8, so rows are whole 16-byte pieces; a thread moves one piece of k and of v. */
#include "kernels/cuda/kv.h"

static constexpr int BLOCK = 256;
static constexpr size_t PIECE = 16;

/* The tables of a move: all lists in one struct, so that one kernel serves reads and writes. */
struct rows {
    char *to_k, *to_v;
    const char *from_k, *from_v;
    size_t pieces; /* of a row */
    int n;
    int page_rows;
};

static __device__ void copy_piece(const struct rows *m, size_t to, size_t from, size_t piece)
{
    size_t a = (to * m->pieces + piece) * PIECE, b = (from * m->pieces + piece) * PIECE;

    gpu_store16(m->to_k + a, gpu_load16(m->from_k + b));
    gpu_store16(m->to_v + a, gpu_load16(m->from_v + b));
}

static __global__ void gather_kernel(struct rows m, const int32_t *pages, const int32_t *index)
{
    size_t number = gpu_thread();
    int i = (int)(number / m.pieces);

    if (i < m.n) {
        copy_piece(&m, kv_row_of(pages, i, m.page_rows), index ? (size_t)index[i] : (size_t)i,
                   number % m.pieces);
    }
}

/* One thread a piece and one for the notes, all moves one after the other: a row that was moved may
 * move again. */
static __global__ void move_kernel(struct rows m, struct kv_note *notes, const int32_t *to,
                                   const int32_t *from)
{
    size_t piece = gpu_thread();

    for (int i = 0; piece < m.pieces && i < m.n; i++) {
        copy_piece(&m, (size_t)to[i], (size_t)from[i], piece);
    }
    for (int i = 0; notes && piece == m.pieces && i < m.n; i++) {
        notes[to[i]] = notes[from[i]];
    }
}

static __global__ void note_kernel(struct kv_pool pool, const int32_t *pages,
                                   const struct kv_note *notes, int n)
{
    int i = (int)gpu_thread();

    if (i < n) {
        pool.notes[kv_row_of(pages, i, pool.page_rows)] = notes[i];
    }
}

static size_t pieces_of(const struct device *dev, const struct kv_pool *pool)
{
    return (size_t)pool->head_dim * cuda_act_bytes(dev) / PIECE;
}

static struct rows into_pool(const struct device *dev, const struct kv_pool *pool, const void *k,
                             const void *v, int n)
{
    return {static_cast<char *>(pool->k),
            static_cast<char *>(pool->v),
            static_cast<const char *>(k),
            static_cast<const char *>(v),
            pieces_of(dev, pool),
            n,
            pool->page_rows};
}

static unsigned blocks_of(const struct rows *m)
{
    return cuda_blocks((size_t)m->n * m->pieces, BLOCK);
}

status cuda_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                      const void *k, const void *v, const int32_t *index, int n)
{
    struct rows m = into_pool(dev, pool, k, v, n);

    if (n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(gather_kernel, blocks_of(&m), BLOCK, 0, cuda_stream(dev), m, pages, index);
    return cuda_launched("kv_gather");
}

status cuda_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                    const int32_t *from, int n)
{
    struct rows m = into_pool(dev, pool, pool->k, pool->v, n);

    if (n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(move_kernel, cuda_blocks(m.pieces + 1, WARP), WARP, 0, cuda_stream(dev), m,
               pool->notes, to, from);
    return cuda_launched("kv_move");
}

status cuda_kv_note(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                    const struct kv_note *notes, int n)
{
    if (n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(note_kernel, cuda_blocks((size_t)n, BLOCK), BLOCK, 0, cuda_stream(dev), *pool, pages,
               notes, n);
    return cuda_launched("kv_note");
}

static __global__ void enter_pages_kernel(const struct page_entry *list, int n)
{
    size_t i = gpu_thread();

    if (i < (size_t)n) {
        *list[i].at = list[i].page;
    }
}

status cuda_enter_pages(struct device *dev, const struct page_entry *list, int n)
{
    if (n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(enter_pages_kernel, cuda_blocks((size_t)n, BLOCK), BLOCK, 0, cuda_stream(dev), list,
               n);
    return cuda_launched("enter_pages");
}
