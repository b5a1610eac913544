// The loops over a tensor's values. Compiled once per instruction set, INSTRUCTION_SET being the
// function of cpu_kernels.h to define. All else is local to this file, and no library is included:
// the linker must not share a function that uses AVX with code that runs everywhere.
#include "cpu_kernels.h"

#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace evonorm {
namespace {

// The compiler would call them, and pass vectors through memory.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

// Vectors of the compiler's (GCC and Clang): 64 bytes, in as many registers as that takes.
template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 64 / sizeof(A);
};
template <typename A> using Vector = typename VectorOf<A>::type;
typedef int32_t I32 __attribute__((vector_size(64)));
typedef int64_t I64 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

// How many values of a vector count: a constant for all of them.
template <typename A> using All = std::integral_constant<int64_t, VectorOf<A>::lanes>;
constexpr bool is_all(int64_t) { return false; }
template <int64_t lanes> constexpr bool is_all(std::integral_constant<int64_t, lanes>) { return true; }

INLINE Vector<float> widen(Vector<float> x, float) { return x; }
INLINE Vector<double> widen(Vector<double> x, double) { return x; }
INLINE Vector<float> widen(U16 x, BFloat16) {
#ifdef __AVX512F__  // here and below, where the compiler does not find the one instruction
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#endif
  return (Vector<float>)(__builtin_convertvector(x, U32) << 16);
}
INLINE Vector<float> widen(U16 x, Half) {
#ifdef __AVX512F__
  return _mm512_cvtph_ps((__m256i)x);
#endif
  const U32 bits = __builtin_convertvector(x, U32), magnitude = bits & 0x7fff;
  // Moved by the difference of the exponents' biases, which is right for subnormals too.
  const Vector<float> value = (Vector<float>)(magnitude << 13) * 0x1p112f;
  const U32 special = (magnitude << 13) | 0x7f800000;  // infinity, NaN
  return (Vector<float>)((magnitude >= 0x7c00 ? special : (U32)value) | (bits & 0x8000) << 16);
}

INLINE Vector<float> narrow(Vector<float> x, float) { return x; }
INLINE Vector<double> narrow(Vector<double> x, double) { return x; }
INLINE U16 narrow(Vector<float> x, BFloat16) {
  // A NaN stays one: those that arithmetic makes, or that a BFloat16 can hold, don't overflow.
  const U32 bits = (U32)x;
  return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, U16);
}
INLINE U16 narrow(Vector<float> x, Half) {
#ifdef __AVX512F__
  return (U16)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
  const U32 bits = (U32)x, magnitude = bits & 0x7fffffff;
  // Adding a power of two rounds off the bits that a half has no room for.
  const Vector<float> value = (Vector<float>)magnitude * 0x1p112f * 0x1p-110f;
  U32 power = magnitude & 0x7f800000;
  power = (power < 0x38800000 ? U32{} + 0x38800000 : power) + 0x07800000;
  const U32 sum = (U32)((Vector<float>)power + value);
  const U32 half = (sum >> 13 & 0x7c00) + (sum & 0xfff);
  return __builtin_convertvector(
      (magnitude > 0x7f800000 ? U32{} + 0x7e00 : half) | (bits >> 16 & 0x8000), U16);
}

template <typename T>
using Stored = decltype(narrow(Vector<typename Wide<T>::type>{}, T{}));

// The first `count` values; the others are 0.
template <typename T, typename Count>
INLINE Vector<typename Wide<T>::type> load(const T* p, Count count) {
  Stored<T> x{};
#ifdef __AVX512BW__
  if (!is_all(count)) {
    const __m512i bytes = _mm512_maskz_loadu_epi8(~0ull >> (64 - count * sizeof(T)), p);
    __builtin_memcpy(&x, &bytes, sizeof(x));
    return widen(x, T{});
  }
#endif
  __builtin_memcpy(&x, p, count * sizeof(T));
  return widen(x, T{});
}

template <typename T, typename Count>
INLINE void store(T* p, Vector<typename Wide<T>::type> x, Count count) {
  const Stored<T> narrowed = narrow(x, T{});
#ifdef __AVX512BW__
  if (!is_all(count)) {
    __m512i bytes{};
    __builtin_memcpy(&bytes, &narrowed, sizeof(narrowed));
    _mm512_mask_storeu_epi8(p, ~0ull >> (64 - count * sizeof(T)), bytes);
    return;
  }
#endif
  __builtin_memcpy(p, &narrowed, count * sizeof(T));
}

// The other way round, NaN would be lost: b it is where either is NaN.
template <typename V>
INLINE V greater(V a, V b) { return a > b ? a : b; }
template <typename V>
INLINE V lesser(V a, V b) { return a < b ? a : b; }
#ifdef __AVX512F__
INLINE Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm512_max_ps(a, b); }
INLINE Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm512_min_ps(a, b); }
#endif

template <typename V>
INLINE V clamp(V x, V low, V high) {
  return lesser(high, greater(low, x));
}

// 2^t. Adding `round` leaves the nearest integer in the low bits, of which t keeps r, |r| <= 1/2.
INLINE Vector<float> exp2(Vector<float> t) {
  const Vector<float> round = Vector<float>{} + 0x1.8p23f;
  t = clamp(t, Vector<float>{} - 126, Vector<float>{} + 126);
  const Vector<float> whole = t + round, r = t - (whole - round);
  // Minimax polynomial: relative error 9e-8.
  Vector<float> y = r * 1.3264727e-3f + 9.671513e-3f;
  y = y * r + 5.5507336e-2f;
  y = y * r + 2.4022242e-1f;
  y = y * r + 6.93147e-1f;
  return (Vector<float>)((I32)(y * r + 1) + ((I32)whole << 23));
}

INLINE Vector<double> exp2(Vector<double> t) {
  const Vector<double> round = Vector<double>{} + 0x1.8p52;
  t = clamp(t, Vector<double>{} - 1022, Vector<double>{} + 1022);
  const Vector<double> whole = t + round, r = (t - (whole - round)) * 0.69314718055994530942;
  Vector<double> y = Vector<double>{} + 1;
#pragma GCC unroll 13
  for (int k = 13; k > 0; k--) y = y * r * (1. / k) + 1;  // the series of exp(r)
  return (Vector<double>)((I64)y + ((I64)whole << 52));
}

// A row of vectors: consecutive values of one plane, or of channels_last LANES planes side by side.
template <typename T, bool last>
struct Strip {
  using A = typename Wide<T>::type;
  using V = Vector<A>;
  static constexpr int64_t lanes = VectorOf<A>::lanes;
  static constexpr int64_t block = 128;  // vectors added up in A; more are added in double

  const Pass<T>& pass;
  int64_t plane;   // n * C + c, of the first lane
  int64_t piece;
  int64_t begin;   // offset in the tensor
  int64_t length;  // vectors' values of each plane
  int64_t width;   // planes side by side

  V coefficient(int k) const {
    const A* p = pass.coefficients[k] + plane;
    return last ? load(p, width) : V{} + *p;
  }

  double* sums(int number, int64_t lane) const {
    return pass.sums + ((plane + lane) * pass.pieces + piece) * number;
  }

  // In how many separate values a sum over the strip ends.
  int64_t results() const { return last ? width : 1; }
  static double result(V sum, int64_t lane) { return last ? sum[lane] : total(sum); }
  INLINE static A total(V sum) {
    typedef A Half __attribute__((vector_size(32)));
    typedef A Quarter __attribute__((vector_size(16)));
    Half half[2];
    Quarter quarter[2];
    __builtin_memcpy(half, &sum, 64);
    half[0] += half[1];
    __builtin_memcpy(quarter, half, 32);
    quarter[0] += quarter[1];
    A result = 0;
    for (int64_t i = 0; i < lanes / 4; i++) result += quarter[0][i];
    return result;
  }

  // f(which of 4 consecutive vectors, its offset, how many of its values count)
  template <typename F>
  INLINE void each(F f) const {
    const int64_t stride = last ? pass.channels : lanes, vectors = last ? length : length / lanes;
    if (!last || width == lanes) {
      int64_t at = begin, k = 0;
      for (; k + 4 <= vectors; k += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++, at += stride) f(i, at, All<A>{});
      }
#pragma GCC unroll 1
      for (; k < vectors; k++, at += stride) f(0, at, All<A>{});
    }
    const int64_t rest = last ? width % lanes : length % lanes;
    const int64_t start = last ? 0 : vectors;
    if (rest == 0) return;
#pragma GCC unroll 1
    for (int64_t k = start; k < start + (last ? length : 1); k++) f(0, begin + k * stride, rest);
  }

  // The strip in blocks.
  template <typename F>
  void blocks(F f) const {
    const int64_t values = last ? block : block * lanes;
    for (int64_t k = 0; k < length; k += values) {
      Strip part = *this;
      part.begin += k * (last ? pass.channels : 1);
      part.length = length - k < values ? length - k : values;
      f(part);
    }
  }
};

template <typename T, bool last, typename F>
void each_strip(const Pass<T>& pass, int64_t first, int64_t count, int64_t step, F f) {
  constexpr int64_t lanes = Strip<T, last>::lanes;
  for (int64_t k = 0, item = first; k < count; k++, item += step) {
    const int64_t piece = pass.pieces == 1 ? 0 : item % pass.pieces, start = piece * pass.piece;
    const int64_t end = start + pass.piece < pass.plane ? start + pass.piece : pass.plane;
    if (!last) {
      const int64_t plane = pass.pieces == 1 ? item : item / pass.pieces;
      f(Strip<T, last>{pass, plane, piece, plane * pass.plane + start, end - start, 1});
      continue;
    }
    const int64_t n = item / pass.pieces, row = (n * pass.plane + start) * pass.channels;
    for (int64_t c = 0; c < pass.channels; c += lanes) {
      const int64_t width = pass.channels - c < lanes ? pass.channels - c : lanes;
      f(Strip<T, last>{pass, n * pass.channels + c, piece, row + c, end - start, width});
    }
  }
}

// A kernel for both layouts from a function of a strip.
template <typename T, typename F>
void over_strips(const Pass<T>& pass, int64_t first, int64_t count, int64_t step, F f) {
  if (pass.channels_last) {
    each_strip<T, true>(pass, first, count, step, f);
  } else {
    each_strip<T, false>(pass, first, count, step, f);
  }
}

// Sums of differences from the mean of what came before, for the first block from its own: sums of
// x and x * x would lose the variance of an offset input.
template <typename T>
void moments(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    using S = decltype(strip);
    using V = typename S::V;
    constexpr int64_t lanes = S::lanes;
    double done = 0;
    strip.blocks([&](auto part) {
      const double values = part.length;
      V shift{};
      if (!done) {
        V sum[4] = {};
        part.each([&](int k, int64_t at, auto count) INLINE_LAMBDA {
          sum[k] += load(pass.x + at, count);
        });
        sum[0] += sum[1] + sum[2] + sum[3];
        for (int64_t i = 0; i < strip.results(); i++) shift[i] = S::result(sum[0], i) / values;
      } else {
        for (int64_t i = 0; i < strip.results(); i++) shift[i] = strip.sums(MOMENTS, i)[0];
      }
      if (strip.results() == 1) shift = V{} + shift[0];
      V sum[4] = {}, square[4] = {};
      part.each([&](int k, int64_t at, auto count) INLINE_LAMBDA {
        V d = load(pass.x + at, count) - shift;
        if (!is_all(count)) {
          for (int64_t i = count; i < lanes; i++) d[i] = 0;
        }
        sum[k] += d;
        square[k] += d * d;
      });
      sum[0] += sum[1] + sum[2] + sum[3];
      square[0] += square[1] + square[2] + square[3];
      for (int64_t i = 0; i < strip.results(); i++) {
        double* out = strip.sums(MOMENTS, i);
        const double rest = S::result(sum[0], i) / values, mean = shift[i] + rest;
        const double squares = S::result(square[0], i) - rest * rest * values;
        // Chan, Golub and LeVeque (1983): moments of two parts together.
        const double delta = done ? mean - out[0] : 0, total = done + values;
        out[0] = done ? out[0] + delta * values / total : mean;
        out[1] = (done ? out[1] : 0) + squares + delta * delta * done * values / total;
      }
      done += values;
    });
  });
}

// Adds up `number` values that f gives for each vector.
template <int number, typename T, typename S, typename F>
void sum_up(const Pass<T>& pass, const S& strip, F f) {
  for (int64_t i = 0; i < strip.results(); i++) {
    for (int k = 0; k < number; k++) strip.sums(number, i)[k] = 0;
  }
  strip.blocks([&](auto part) {
    typename S::V sum[number] = {};
    part.each([&](int, int64_t at, auto count) INLINE_LAMBDA {
      f(load(pass.x + at, count), load(pass.dy + at, count), sum);
    });
    for (int64_t i = 0; i < strip.results(); i++) {
      for (int k = 0; k < number; k++) strip.sums(number, i)[k] += S::result(sum[k], i);
    }
  });
}

// A float16 output stays finite, as a large constant over sqrt(eps) would not.
template <typename T, typename V>
inline V saturated(V y) {
  if (!std::is_same<T, Half>::value) return y;
  return clamp(y, V{} - 65504, V{} + 65504);
}

template <typename T>
void sample_forward(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    const auto rate = strip.coefficient(Sample::RATE), a = strip.coefficient(Sample::A),
               b = strip.coefficient(Sample::B);
    strip.each([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count);
      store(pass.out + at, saturated<T>(x * a / (1 + exp2(rate * x)) + b), count);
    });
  });
}

template <typename T>
void sample_sums(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    const auto rate = strip.coefficient(Sample::RATE);
    sum_up<Sample::SUMS>(pass, strip, [&](auto x, auto dy, auto* sum) INLINE_LAMBDA {
      const auto e = exp2(rate * x), s = 1 / (1 + e), by_scale = dy * x * s;
      sum[Sample::BY_SCALE] += by_scale;
      sum[Sample::BY_BIAS] += dy;
      sum[Sample::BY_V] += by_scale * x * (e * s);
    });
  });
}

template <typename T> constexpr typename Wide<T>::type LN2 = 0.693147180559945309417;

template <typename T>
void sample_backward(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    const auto rate = strip.coefficient(Sample::RATE), a = strip.coefficient(Sample::A),
               centre = strip.coefficient(Sample::CENTRE), p = strip.coefficient(Sample::P),
               q = strip.coefficient(Sample::Q);
    strip.each([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count), dy = load(pass.dy + at, count);
      const auto t = rate * x, e = exp2(t), s = 1 / (1 + e);
      store(pass.out + at, dy * a * s * (1 - t * LN2<T> * (e * s)) + (p * (x - centre) + q), count);
    });
  });
}

template <typename T>
void batch_forward(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    const auto slope = strip.coefficient(Batch::SLOPE), rise = strip.coefficient(Batch::RISE),
               floor = strip.coefficient(Batch::FLOOR), a = strip.coefficient(Batch::A),
               b = strip.coefficient(Batch::B);
    strip.each([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count);
      store(pass.out + at, saturated<T>(x * a / greater(floor, slope * x + rise) + b), count);
    });
  });
}

template <typename T>
void batch_sums(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    const auto slope = strip.coefficient(Batch::SLOPE), rise = strip.coefficient(Batch::RISE),
               floor = strip.coefficient(Batch::FLOOR);
    sum_up<Batch::SUMS>(pass, strip, [&](auto x, auto dy, auto* sum) INLINE_LAMBDA {
      const decltype(x) line = slope * x + rise, r = 1 / greater(floor, line);
      const decltype(x) by_scale = dy * x * r, e = by_scale * r;
      const decltype(x) by_line = line > floor ? e : decltype(x){};
      sum[Batch::BY_SCALE] += by_scale;
      sum[Batch::BY_BIAS] += dy;
      sum[Batch::BY_FLOOR] += e - by_line;
      sum[Batch::BY_RISE] += by_line;
      sum[Batch::BY_SLOPE] += by_line * x;
    });
  });
}

template <typename T>
void batch_backward(const Pass<T>& pass, int64_t first, int64_t count, int64_t step) {
  over_strips(pass, first, count, step, [&](auto strip) {
    const auto slope = strip.coefficient(Batch::SLOPE), rise = strip.coefficient(Batch::RISE),
               floor = strip.coefficient(Batch::FLOOR), a = strip.coefficient(Batch::A),
               centre = strip.coefficient(Batch::CENTRE), p = strip.coefficient(Batch::P),
               q = strip.coefficient(Batch::Q);
    strip.each([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count), dy = load(pass.dy + at, count);
      const decltype(x) line = slope * x + rise, r = 1 / greater(floor, line);
      const decltype(x) by_line = line > floor ? x * r * slope : decltype(x){};
      store(pass.out + at, dy * a * r * (1 - by_line) + (p * (x - centre) + q), count);
    });
  });
}

}  // namespace

template <typename T>
const Kernels<T>& INSTRUCTION_SET() {
  static constexpr Kernels<T> kernels{moments<T>,       sample_forward<T>, sample_sums<T>,
                                      sample_backward<T>, batch_forward<T>, batch_sums<T>,
                                      batch_backward<T>};
  return kernels;
}
template const Kernels<float>& INSTRUCTION_SET<float>();
template const Kernels<double>& INSTRUCTION_SET<double>();
template const Kernels<BFloat16>& INSTRUCTION_SET<BFloat16>();
template const Kernels<Half>& INSTRUCTION_SET<Half>();

}  // namespace evonorm
