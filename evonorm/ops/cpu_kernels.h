// What cpu.cpp (once) and cpu_kernels.cpp (compiled per instruction set) share.
#pragma once

#include <cstdint>

namespace evonorm {

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

// Statistics and arithmetic are in float, in double for double.
template <typename T> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };

// One pass over a tensor (N, C, H, W), as N * C planes of `plane` = H * W values. A reduction cuts
// each plane into `pieces` of at most `piece` values and leaves its sums for each at
// sums[((n * C + c - origin) * pieces + piece) * (number of sums)]; the caller adds these up in
// order, so that a result depends neither on the number of threads nor on their timing.
//
// A kernel is called with items: (n, c, piece) of a contiguous tensor; (n, piece) of a channels_last
// one, where it takes all channels.
template <typename T>
struct Pass {
  const T *x, *dy;
  T* out;
  int64_t batch, channels, plane, pieces, piece;
  bool channels_last;
  int64_t origin;
  double* sums;
  const typename Wide<T>::type* coefficients[8];  // of plane n * C + c - origin; which, a kernel says
};

template <typename T>
using Kernel = void (*)(const Pass<T>&, int64_t first, int64_t count);

// Of x: its mean and the sum of its squared differences from the mean.
constexpr int MOMENTS = 2;

// y = x * sigmoid(v * x) * a + b, with sigmoid(v * x) = 1 / (1 + 2^(rate * x))
struct Sample {
  // Sums, with num = x * sigmoid(v * x), of dy * num, dy, dy * (d num / d v).
  enum { BY_SCALE, BY_BIAS, BY_V, SUMS };
  enum { RATE, A, B, FORWARD, CENTRE = B, P, Q, BACKWARD };
};

// y = x * a / den + b, den = max(floor, slope * x + rise)
struct Batch {
  // Sums of dy * x / den, dy and, with e = dy * x / den^2, of e where the floor is the larger one,
  // of e and e * x where it is not.
  enum { BY_SCALE, BY_BIAS, BY_FLOOR, BY_RISE, BY_SLOPE, SUMS };
  enum { SLOPE, RISE, FLOOR, A, B, FORWARD, CENTRE = B, P, Q, BACKWARD };
};

template <typename T>
struct Kernels {
  Kernel<T> moments;
  // y; sums of the backward pass; dx = dy * a * (d y / d x at constant statistics)
  // + p * (x - centre) + q.
  Kernel<T> sample_forward, sample_sums, sample_backward;
  Kernel<T> batch_forward, batch_sums, batch_backward;
};

template <typename T> const Kernels<T>& baseline();
template <typename T> const Kernels<T>& avx2();
template <typename T> const Kernels<T>& avx512();

}  // namespace evonorm
