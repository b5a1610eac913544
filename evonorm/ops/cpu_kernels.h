// What cpu.cpp (compiled once) and cpu_kernels.cpp (compiled once per instruction set) share.
//
// How a tensor x of shape (N, C, H, W) is cut up. All files of the CPU's kernels use these names.
//
//   plane   the H * W values of one channel of one sample
//   piece   consecutive values of a plane: all pieces of a plane have the same size, but for the
//           last one, which may be smaller
//   strip   what a kernel works on at a time: a row of vectors, as in the pictures
//   chunk   at most 128 vectors of a strip, one after the other. Within a chunk sums are in float;
//           the sums of the chunks are added up in double
//   vector  as many values as a register of the processor holds, each in a lane of its own
//   slab    the planes of some channels of some samples
//
// A contiguous tensor: memory goes along a plane, then on to the next plane. Each piece of each
// plane is a strip, and a vector is consecutive values of it. Here a vector has 4 lanes, a chunk 2
// vectors instead of 128, and a plane 35 values in 2 pieces; equal letters are a vector.
//
//               <------------------------- plane ------------------------->
//               <---------- piece 0 ----------> <-------- piece 1 -------->
//   channel 0   aaaa bbbb | cccc dddd | ee      ffff gggg | hhhh iiii | j
//   channel 1   kkkk llll | ...  <- chunks      ...
//
// A channels_last tensor: memory goes along the channels of a position, then on to the next
// position. A strip is one piece of as many neighbouring planes as a vector has lanes, and a vector
// is one position of all of them.
//
//   channels     0 1 2 3    4 5 6 7    8 9
//
//   position 0   a a a a    e e e e    i i    piece 0, chunk 0 of its strips
//   position 1   b b b b    f f f f    j j    piece 0, chunk 0
//   position 2   c c c c    g g g g    k k    piece 0, chunk 1
//   position 3   d d d d    h h h h    l l    piece 1, chunk 0
//   ...
//                a strip    a strip    a strip of width 2
#pragma once

#include <cstdint>

namespace evonorm {

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

// The type of statistics and arithmetic, which the code calls A: float, or double for double.
template <typename T> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };

// One pass over a tensor. A reduction leaves its sums for each piece of each plane at
// sums[((plane - first_plane) * pieces + piece) * (number of sums)], with plane = n * C + c. The
// caller adds the pieces' sums up in order, so that a result depends neither on the number of
// threads nor on their timing.
//
// A kernel is called with a range of items. An item of a contiguous tensor is a strip, (n, c,
// piece); an item of a channels_last one is a piece of all channels, (n, piece).
template <typename T>
struct Pass {
  const T *x, *dy;
  T* out;  // a reduction only has it loaded into the cache, if it is given
  int64_t ahead;  // a map has the values that lie so far ahead loaded into the cache, or none if 0
  int64_t batch, channels, plane_size, pieces, piece_size;
  bool channels_last;
  int64_t first_plane;  // the plane whose sums and coefficients come first
  double* sums;
  // Each is an array with one value per plane. The enums below say which ones a kernel takes.
  const typename Wide<T>::type* coefficients[8];
};

template <typename T>
using Kernel = void (*)(const Pass<T>&, int64_t first_item, int64_t items);

// The number of sums of the kernel `moments`: the mean of x, and the sum of the squared differences
// from it.
constexpr int MOMENTS = 2;

// The S series: y = num * scale + bias, with num = x * sigmoid(v * x), where the sigmoid is
// 1 / (1 + 2^(rate * x)).
struct SeriesS {
  // The sums of the backward pass: of dy * num, of dy, and of dy * (d num / d v).
  enum { BY_SCALE, BY_BIAS, BY_V, SUMS };
  // The coefficients, and how many the forward and the backward pass take.
  enum { RATE, SCALE, BIAS, FORWARD, CENTRE = BIAS, P, Q, BACKWARD };
};

// The B series: y = x / den * scale + bias, with den = max(floor, line), line = slope * x + rise.
struct SeriesB {
  // The sums of the backward pass: of dy * x / den, of dy, and with e = dy * x / den^2 of e where the
  // floor is larger than the line, of e where it is not, and of e * x where it is not.
  enum { BY_SCALE, BY_BIAS, BY_FLOOR, BY_RISE, BY_SLOPE, SUMS };
  // The coefficients, and how many the forward and the backward pass take.
  enum { SLOPE, RISE, FLOOR, SCALE, BIAS, FORWARD, CENTRE = BIAS, P, Q, BACKWARD };
};

// The kernels for one type of values. A backward kernel writes
// dx = dy * scale * derivative + p * (x - centre) + q,
// with the derivative of num, or of x / den, by x at constant statistics.
template <typename T>
struct Kernels {
  Kernel<T> moments;
  Kernel<T> s_forward, s_sums, s_backward;
  Kernel<T> b_forward, b_sums, b_backward;
};

template <typename T> const Kernels<T>& baseline();
template <typename T> const Kernels<T>& avx2();
template <typename T> const Kernels<T>& avx512();

}  // namespace evonorm
