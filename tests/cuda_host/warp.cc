/* warp.cc - what the lanes of a warp do together: ballots, matrix loads and matrix products. */
#include <gpu_platform.h>

namespace
{

constexpr int WARP = CUDA_HOST_WARP;

template <typename T> T *lane_at(char *lanes, int lane)
{
    return reinterpret_cast<T *>(lanes + lane * CUDA_HOST_LANE_BYTES);
}

float bf16_to_float(unsigned pair, int which)
{
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}

float f16_to_float(unsigned pair, int which)
{
    return gpu_f16_low(which ? pair >> 16 : pair);
}

struct mma_lane {
    unsigned a[4];
    unsigned b[2];
    float d[4];
};

template <float (*half_to_float)(unsigned, int)> void mma_complete(char *lanes)
{
    float a[16][16], b[16][8];

    for (int lane = 0; lane < WARP; lane++) {
        const auto *in = lane_at<mma_lane>(lanes, lane);
        int g = lane / 4, t = lane % 4;

        for (int i = 0; i < 8; i++) {
            a[g + (i / 2 % 2) * 8][2 * t + i % 2 + (i / 4) * 8] =
                half_to_float(in->a[i / 2], i % 2);
        }
        for (int i = 0; i < 4; i++) {
            b[2 * t + i % 2 + (i / 2) * 8][g] = half_to_float(in->b[i / 2], i % 2);
        }
    }
    float d[16][8] = {};
    for (int k = 0; k < 16; k++) {
        for (int row = 0; row < 16; row++) {
            for (int col = 0; col < 8; col++) {
                d[row][col] += a[row][k] * b[k][col];
            }
        }
    }
    for (int lane = 0; lane < WARP; lane++) {
        auto *out = lane_at<mma_lane>(lanes, lane);
        int g = lane / 4, t = lane % 4;

        for (int i = 0; i < 4; i++) {
            out->d[i] += d[g + i / 2 * 8][2 * t + i % 2];
        }
    }
}

struct matrix_lane {
    const void *row;
    unsigned r[4];
};

template <bool transposed> void ldmatrix_complete(char *lanes)
{
    for (int i = 0; i < 4; i++) {
        unsigned short m[8][8];

        for (int row = 0; row < 8; row++) {
            memcpy(m[row], lane_at<matrix_lane>(lanes, i * 8 + row)->row, sizeof(m[row]));
        }
        for (int lane = 0; lane < WARP; lane++) {
            int g = lane / 4, t = lane % 4;
            unsigned low = transposed ? m[2 * t][g] : m[g][2 * t];
            unsigned high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];

            lane_at<matrix_lane>(lanes, lane)->r[i] = low | high << 16;
        }
    }
}

void mma(float d[4], const unsigned a[4], const unsigned b[2], int kind, void (*complete)(char *))
{
    mma_lane mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
    auto *lanes = static_cast<char *>(cuda_host_warp_exchange(&mine, sizeof(mine), kind, complete));

    memcpy(d, lane_at<mma_lane>(lanes, cuda_host_lane())->d, sizeof(mine.d));
}

void ldmatrix(unsigned r[4], const void *row, int kind, void (*complete)(char *))
{
    matrix_lane mine = {cuda_host_aligned(row, 16), {}};
    auto *lanes = static_cast<char *>(cuda_host_warp_exchange(&mine, sizeof(mine), kind, complete));

    memcpy(r, lane_at<matrix_lane>(lanes, cuda_host_lane())->r, sizeof(mine.r));
}

} // namespace

unsigned __ballot_sync(unsigned, int predicate)
{
    int mine = predicate != 0;
    auto *lanes = static_cast<char *>(
        cuda_host_warp_exchange(&mine, sizeof(mine), CUDA_HOST_BALLOT, nullptr));
    unsigned ballot = 0;

    for (int lane = 0; lane < WARP; lane++) {
        ballot |= static_cast<unsigned>(*lane_at<int>(lanes, lane)) << lane;
    }
    return ballot;
}

void gpu_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    mma(d, a, b, CUDA_HOST_MMA_BF16, mma_complete<bf16_to_float>);
}

void gpu_mma_f16(float d[4], const unsigned a[4], const unsigned b[2])
{
    mma(d, a, b, CUDA_HOST_MMA_F16, mma_complete<f16_to_float>);
}

void gpu_ldmatrix(unsigned r[4], const void *row)
{
    ldmatrix(r, row, CUDA_HOST_LDMATRIX, ldmatrix_complete<false>);
}

void gpu_ldmatrix_transposed(unsigned r[4], const void *row)
{
    ldmatrix(r, row, CUDA_HOST_LDMATRIX_TRANSPOSED, ldmatrix_complete<true>);
}
