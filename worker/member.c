#include "worker/member.h"

struct cache_heads member_cache_heads(const struct member *member,
                                      const struct method_params *params)
{
    const struct split *split = &member->model->split;

    if (method_caches_by_query(params)) {
        return (struct cache_heads){
            .n = split->query_heads,
            .first = split->query_first,
            .sharing = split->query_heads / split->kv_heads,
            .speaks = true,
        };
    }
    return (struct cache_heads){
        .n = split->kv_heads,
        .first = split->kv_first,
        .sharing = 1,
        .speaks = split->replica == 0,
    };
}

uint64_t member_hash(uint64_t hash, const int32_t *values, int n)
{
    for (int i = 0; i < n; i++) {
        uint32_t value = (uint32_t)values[i];
        for (int byte = 0; byte < 4; byte++) {
            hash = (hash ^ ((value >> (8 * byte)) & 0xff)) * UINT64_C(0x100000001b3);
        }
    }
    return hash;
}

/* all (ranks, 2): the shared hash must be ours everywhere, the head's among its replicas. */
static status compare(const struct member *member, const uint64_t *all)
{
    const struct split *split = &member->model->split;
    int first = comm_rank(member->comm) - split->replica;

    for (int r = 0; r < comm_size(member->comm); r++) {
        bool same_head = r >= first && r < first + split->replicas;
        const uint64_t *theirs = all + (size_t)r * 2;
        if (theirs[0] != member->shared_hash || (same_head && theirs[1] != member->head_hash)) {
            return status_fail(STATUS_INTERNAL, "selection differs between ranks %d and %d",
                               comm_rank(member->comm), r);
        }
    }
    return STATUS_OK;
}

status member_check_hashes(const struct member *member)
{
    struct scratch *s = member->scratch;
    const uint64_t mine[2] = {member->shared_hash, member->head_hash};
    size_t bytes = (size_t)comm_size(member->comm) * sizeof(mine);
    status st;

    st = device_upload(member->dev, s->hashes, mine, sizeof(mine));
    if (!st) {
        st = comm_all_gather(member->comm, s->hashes_of_all, s->hashes, sizeof(mine));
    }
    if (!st) {
        st = device_download(member->dev, s->host_hashes, s->hashes_of_all, bytes);
    }
    return st ? st : compare(member, s->host_hashes);
}
