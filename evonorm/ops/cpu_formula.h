// What cpu_formula.cpp (compiled once) and cpu_formula_kernels.cpp (once per instruction set) share.
//
// A formula is a list of steps. Each takes the results of earlier steps, by their numbers a and b.
// A result is either full, with a value for each channel and pixel, or has one for each channel. A
// step with two inputs has both of its own shape; EXPAND makes a full one of one per channel.
//
// A unit is what is evaluated at a time: some channels of one sample, as few as the aggregations
// allow, so that the results of all steps stay in the cache. The values lie as in memory: channel
// after channel, or with channels_last pixel after pixel.
#pragma once

#include <cstdint>

namespace evonorm {

// evonorm/program.py has the same names in the same order, and says what they compute.
enum Op : int64_t {
  X, V0, V1, STATISTIC, NUMBER, EXPAND,
  ADD, SUB, MUL, DIV, NEG, MAX, RELU, AT_LEAST, SIGMOID, TANH, EXP, LOG, SIGNED_LOG, ABS, SQUARE,
  SQRT, SIGNED_SQRT, ROOT, GUARDED,
  MEAN, STD, RMS,
  OPS
};

enum Over : int64_t { IMAGE, GROUP, SAMPLE };  // the b of MEAN, STD and RMS

struct Step {
  Op op;
  int64_t a, b;
  bool full;
  double number;  // of NUMBER and AT_LEAST
  // Where in the scratch memory its value is, the gradient by it, and a mean that STD keeps.
  int64_t value, gradient, mean;
  bool varies;  // with x, a vector or a statistic, so that there is a gradient by it
  bool first_a, first_b;  // whether no later step has added to the gradient by a, or b
};

template <typename T>
struct Formula {
  const Step* steps;
  int64_t count;
  T eps;
  int64_t batch, channels, pixels, group_channels;
  bool channels_last;
  int64_t unit_channels, units_per_sample;
  int64_t padded, padded_channels;  // values of a full result and of one per channel, in memory
  int64_t spare;  // where the scratch memory of no step begins
  const T *x, *dy;
  const T *v0, *v1, *weight, *bias, *statistics;  // (C,), of the statistics (K, C); null for none
  T* out;  // y, or dx
  T* sums;  // (N, rows, C): the gradients by v0, v1, weight, bias and the statistics, of each sample
  int64_t rows;
};

// How many values a vector of the processor may hold, and how wide rows of channels_last maps are.
constexpr int64_t LANES = 16, WIDE = 64;

template <typename T>
struct FormulaKernels {
  void (*forward)(const Formula<T>&, T* scratch, int64_t first_unit, int64_t end_unit);
  void (*backward)(const Formula<T>&, T* scratch, int64_t first_unit, int64_t end_unit);
};

template <typename T> const FormulaKernels<T>& formula_baseline();
template <typename T> const FormulaKernels<T>& formula_avx2();
template <typename T> const FormulaKernels<T>& formula_avx512();

}  // namespace evonorm
