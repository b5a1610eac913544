// The loops over a tensor's values, in the words of cpu_kernels.h. setup.py compiles this file once
// per instruction set: INSTRUCTION_SET is the name of the function of cpu_kernels.h that is defined
// here. All else is local to this file, and the file includes no library, as the linker must not
// share a function that uses AVX with code that runs everywhere.
#include "cpu_kernels.h"

#include <type_traits>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace evonorm {
namespace {

// Without these the compiler would call the functions, and pass vectors through memory.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

#if defined(__AVX512F__)
#define REGISTER 64  // bytes
#elif defined(__AVX2__)
#define REGISTER 32
#else
#define REGISTER 16
#endif

// The vectors of GCC and Clang. They have the size of a register, as GCC takes some operations on
// larger ones apart.
template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(REGISTER)));
  static constexpr int64_t lanes = REGISTER / sizeof(A);
};
template <typename A> using Vector = typename VectorOf<A>::type;
typedef int32_t I32 __attribute__((vector_size(REGISTER)));
typedef int64_t I64 __attribute__((vector_size(REGISTER)));
typedef uint32_t U32 __attribute__((vector_size(REGISTER)));
typedef uint16_t U16 __attribute__((vector_size(REGISTER / 2)));

// How many lanes of a vector count: this constant says all of them, a plain number some of them.
template <typename A> using All = std::integral_constant<int64_t, VectorOf<A>::lanes>;
constexpr bool is_all(int64_t) { return false; }
template <int64_t lanes>
constexpr bool is_all(std::integral_constant<int64_t, lanes>) { return true; }

INLINE Vector<float> widen(Vector<float> x, float) { return x; }
INLINE Vector<double> widen(Vector<double> x, double) { return x; }
INLINE Vector<float> widen(U16 x, BFloat16) {
#if defined(__AVX512F__)  // here and below: the compiler does not find the one instruction
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)x), 16);
#endif
  return (Vector<float>)(__builtin_convertvector(x, U32) << 16);
}
INLINE Vector<float> widen(U16 x, Half) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)x);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)x);
#endif
  const U32 bits = __builtin_convertvector(x, U32), magnitude = bits & 0x7fff;
  // The exponent is moved by the difference of the biases, which is right for subnormals too.
  const Vector<float> value = (Vector<float>)(magnitude << 13) * 0x1p112f;
  const U32 special = (magnitude << 13) | 0x7f800000;  // infinity, NaN
  return (Vector<float>)((magnitude >= 0x7c00 ? special : (U32)value) | (bits & 0x8000) << 16);
}

INLINE Vector<float> narrow(Vector<float> x, float) { return x; }
INLINE Vector<double> narrow(Vector<double> x, double) { return x; }
INLINE U16 narrow(Vector<float> x, BFloat16) {
  // A NaN stays a NaN: the NaNs that arithmetic makes, or that a BFloat16 can hold, don't overflow.
  const U32 bits = (U32)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i r = (__m256i)rounded;
  return (U16)_mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
#endif
  return __builtin_convertvector(rounded, U16);
}
INLINE U16 narrow(Vector<float> x, Half) {
#if defined(__AVX512F__)
  return (U16)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (U16)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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

#if defined(__AVX2__) && !defined(__AVX512F__)
INLINE __m256i mask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first `count` values in the first lanes, and 0 in the other lanes.
template <typename T, typename Count>
INLINE Vector<typename Wide<T>::type> load(const T* p, Count count) {
  Stored<T> x{};
#if defined(__AVX512F__)
  if (!is_all(count)) {
    const __m512i bytes = _mm512_maskz_loadu_epi8(~0ull >> (64 - count * sizeof(T)), p);
    __builtin_memcpy(&x, &bytes, sizeof(x));
    return widen(x, T{});
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) {
    if (!is_all(count)) return _mm256_maskload_ps(p, mask(count));
  }
#endif
  __builtin_memcpy(&x, p, count * sizeof(T));
  return widen(x, T{});
}

template <typename T, typename Count>
INLINE void store(T* p, Vector<typename Wide<T>::type> x, Count count) {
  const Stored<T> narrowed = narrow(x, T{});
#if defined(__AVX512F__)
  if (!is_all(count)) {
    __m512i bytes{};
    __builtin_memcpy(&bytes, &narrowed, sizeof(narrowed));
    _mm512_mask_storeu_epi8(p, ~0ull >> (64 - count * sizeof(T)), bytes);
    return;
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) {
    if (!is_all(count)) return _mm256_maskstore_ps(p, mask(count), narrowed);
  }
#endif
  __builtin_memcpy(p, &narrowed, count * sizeof(T));
}

// Where one of the two is NaN, the result is b. So the value that may be NaN is given as b.
template <typename V>
INLINE V greater(V a, V b) { return a > b ? a : b; }
template <typename V>
INLINE V lesser(V a, V b) { return a < b ? a : b; }
#ifdef __AVX512F__
INLINE Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm512_max_ps(a, b); }
INLINE Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm512_min_ps(a, b); }
#endif

// x in the first `count` lanes, and 0 in the other lanes.
template <typename V>
INLINE V keep_first(V x, int64_t count) {
  for (int64_t i = count; i < int64_t(sizeof(x) / sizeof(x[0])); i++) x[i] = 0;
  return x;
}
#if defined(__AVX512F__)
INLINE Vector<float> keep_first(Vector<float> x, int64_t count) {
  return _mm512_maskz_mov_ps((1u << count) - 1, x);
}
#elif defined(__AVX2__)
INLINE Vector<float> keep_first(Vector<float> x, int64_t count) {
  return _mm256_and_ps(x, _mm256_castsi256_ps(mask(count)));
}
#endif

template <typename V>
INLINE V clamp(V x, V low, V high) {
  return lesser(high, greater(low, x));
}

// 2^r for |r| <= 1/2, by a minimax polynomial: relative error 9e-8.
INLINE Vector<float> exp2_of_fraction(Vector<float> r) {
  Vector<float> y = r * 1.3264727e-3f + 9.671513e-3f;
  y = y * r + 5.5507336e-2f;
  y = y * r + 2.4022242e-1f;
  y = y * r + 6.93147e-1f;
  return y * r + 1;
}

// 2^t. Adding `round` to t leaves the integer nearest to t in the low bits of the sum. What t is more
// than this integer, |r| <= 1/2, goes through the polynomial.
INLINE Vector<float> exp2(Vector<float> t) {
  t = clamp(t, Vector<float>{} - 126, Vector<float>{} + 126);
#ifdef __AVX512F__
  const Vector<float> nearest =
      _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_of_fraction(t - nearest), nearest);
#endif
  const Vector<float> round = Vector<float>{} + 0x1.8p23f, shifted = t + round;
  return (Vector<float>)((I32)exp2_of_fraction(t - (shifted - round)) + ((I32)shifted << 23));
}

INLINE Vector<double> exp2(Vector<double> t) {
  const Vector<double> round = Vector<double>{} + 0x1.8p52;
  t = clamp(t, Vector<double>{} - 1022, Vector<double>{} + 1022);
  const Vector<double> shifted = t + round, r = (t - (shifted - round)) * 0.69314718055994530942;
  Vector<double> y = Vector<double>{} + 1;
#pragma GCC unroll 13
  for (int k = 13; k > 0; k--) y = y * r * (1. / k) + 1;  // the series of exp(r)
  return (Vector<double>)((I64)y + ((I64)shifted << 52));
}

// The sum over the lanes of each of `number` vectors.
template <int number, typename A>
INLINE void totals(const Vector<A>* vectors, A* out) {
  for (int k = 0; k < number; k++) {
    typedef A Short __attribute__((vector_size(16)));
    Short shorts[REGISTER / 16];
    __builtin_memcpy(shorts, vectors + k, REGISTER);
    for (int i = 1; i < REGISTER / 16; i++) shorts[0] += shorts[i];
    out[k] = 0;
    for (int i = 0; i < int(16 / sizeof(A)); i++) out[k] += shorts[0][i];
  }
}
#ifdef __AVX512F__
template <int number>
INLINE void totals(const Vector<float>* vectors, float* out) {
  constexpr int together = number < 4 ? number : 4;
  __m512 v[4] = {};
  for (int k = 0; k < together; k++) v[k] = vectors[k];
  const __m512 ab = _mm512_shuffle_f32x4(v[0], v[1], 0x44) + _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 cd = _mm512_shuffle_f32x4(v[2], v[3], 0x44) + _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  __m512 x = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
  x += _mm512_shuffle_ps(x, x, 0x4e);
  x += _mm512_shuffle_ps(x, x, 0xb1);
  for (int k = 0; k < together; k++) out[k] = x[4 * k];
  if constexpr (number > 4) totals<number - 4>(vectors + 4, out + 4);
}
#endif

// A strip of one plane, or of a channels_last tensor with `last`, of `lanes` planes side by side.
template <typename T, bool last>
struct Strip {
  using A = typename Wide<T>::type;
  using V = Vector<A>;
  static constexpr int64_t lanes = VectorOf<A>::lanes;
  static constexpr int64_t chunk_vectors = 128;

  const Pass<T>& pass;
  int64_t plane;   // the number n * C + c of the plane, or of the plane in the first lane
  int64_t piece;   // the number of the piece in its plane
  int64_t begin;   // where the strip's first value is in the tensor
  int64_t length;  // how many values each plane has in the strip
  int64_t width;   // how many planes lie side by side

  V coefficient(int k) const {
    const A* p = pass.coefficients[k] + plane - pass.first_plane;
    return last ? load(p, width) : V{} + *p;
  }

  double* sums(int number, int64_t lane) const {
    return pass.sums + ((plane - pass.first_plane + lane) * pass.pieces + piece) * number;
  }

  // The mean of some values of a chunk, which is near the mean of all of them: the square of the
  // distance is at most 32 variances, even if exactly these values are outliers.
  INLINE V mean_of_some() const {
    const int64_t stride = last ? pass.channels : 1;
    if (!last && length > chunk_vectors) {
      V sum{};
      for (int64_t k = 0; k < 4; k++) {
        sum += load(pass.x + begin + k * (length - lanes) / 3, All<A>{});
      }
      return spread(sum) / (4 * lanes);
    }
    V sum{};
    for (int64_t k = 0; k < 4; k++) {
      const T* p = pass.x + begin + k * (length - 1) / 3 * stride;
      sum += last ? load(p, width) : V{} + load(p, int64_t(1))[0];
    }
    return sum / 4;
  }

  // A sum over the strip has this many results, one per plane: at most `max_results`.
  static constexpr int64_t max_results = last ? lanes : 1;
  int64_t results() const { return last ? width : 1; }

  // The sum over the lanes of a vector, in each lane; with `last` the lanes stay apart.
  INLINE static V spread(V sum) {
    if (last) return sum;
    A total[1];
    totals<1>(&sum, total);
    return V{} + total[0];
  }

  // Adds the sums of a chunk, each still a vector, to the results for the strip.
  template <int number>
  INLINE static void add(const V (&sums)[number], double (&to)[number][max_results]) {
    A total[number];
    if (!last) totals<number>(sums, total);
    for (int k = 0; k < number; k++) {
      for (int64_t i = 0; i < max_results; i++) to[k][i] += last ? sums[k][i] : total[k];
    }
  }

  // Calls f for each vector: f(0, 1, 2 or 3 in turn, where the vector is in the tensor, how many of
  // its lanes count). With the first argument, f can keep four sums that don't wait for each other.
  template <typename F>
  INLINE void each_vector(F f) const {
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

  // Calls f for each chunk, which is a shorter strip.
  template <typename F>
  INLINE void each_chunk(F f) const {
    const int64_t values = last ? chunk_vectors : chunk_vectors * lanes;
    for (int64_t k = 0; k < length; k += values) {
      Strip chunk = *this;
      chunk.begin += k * (last ? pass.channels : 1);
      chunk.length = length - k < values ? length - k : values;
      f(chunk);
    }
  }
};

// Calls f for each strip of the items.
template <typename T, bool last, typename F>
INLINE void each_strip(const Pass<T>& pass, int64_t first_item, int64_t items, F f) {
  constexpr int64_t lanes = Strip<T, last>::lanes;
  for (int64_t item = first_item; item < first_item + items; item++) {
    const int64_t piece = pass.pieces == 1 ? 0 : item % pass.pieces, start = piece * pass.piece_size;
    const int64_t stop = start + pass.piece_size;
    const int64_t end = stop < pass.plane_size ? stop : pass.plane_size;
    if (!last) {
      const int64_t plane = pass.pieces == 1 ? item : item / pass.pieces;
      f(Strip<T, last>{pass, plane, piece, plane * pass.plane_size + start, end - start, 1});
      continue;
    }
    const int64_t n = item / pass.pieces, begin = (n * pass.plane_size + start) * pass.channels;
    for (int64_t c = 0; c < pass.channels; c += lanes) {
      const int64_t width = pass.channels - c < lanes ? pass.channels - c : lanes;
      f(Strip<T, last>{pass, n * pass.channels + c, piece, begin + c, end - start, width});
    }
  }
}

// The same for both layouts, so that a kernel is a function of a strip.
template <typename T, typename F>
INLINE void over_strips(const Pass<T>& pass, int64_t first_item, int64_t items, F f) {
  if (pass.channels_last) {
    each_strip<T, true>(pass, first_item, items, f);
  } else {
    each_strip<T, false>(pass, first_item, items, f);
  }
}

// The sums are of differences from a shift near the mean, as sums of x and x * x would lose the
// variance of an offset input. The shift is the mean of the chunks so far, and for the first chunk
// the mean of some of its values.
template <typename T>
void moments(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    using ThisStrip = decltype(strip);
    using V = typename ThisStrip::V;
    double done = 0, means[ThisStrip::max_results], squares[ThisStrip::max_results];
    strip.each_chunk([&](auto chunk) INLINE_LAMBDA {
      using A = typename ThisStrip::A;
      const A one_over_length = 1 / A(chunk.length);
      V shift = chunk.mean_of_some();
      if (done > 0) {
        for (int64_t i = 0; i < ThisStrip::max_results; i++) shift[i] = means[i];
        if (ThisStrip::max_results == 1) shift = V{} + shift[0];
      }
      V sum[4] = {}, square[4] = {};
      chunk.each_vector([&](int k, int64_t at, auto count) INLINE_LAMBDA {
        V d = load(pass.x + at, count) - shift;
        if (!is_all(count)) d = keep_first(d, count);
        sum[k] += d;
        square[k] += d * d;
      });
      const V both[2] = {sum[0] + sum[1] + (sum[2] + sum[3]),
                         square[0] + square[1] + (square[2] + square[3])};
      double of_chunk[2][ThisStrip::max_results] = {};
      ThisStrip::add(both, of_chunk);
      for (int64_t i = 0; i < ThisStrip::max_results; i++) {
        const double from_shift = of_chunk[0][i] * one_over_length, mean = shift[i] + from_shift;
        const double around = of_chunk[1][i] - from_shift * of_chunk[0][i];
        if (done == 0) {
          means[i] = mean;
          squares[i] = around;
          continue;
        }
        // Chan, Golub and LeVeque (1983): the moments of both together.
        const double delta = mean - means[i], share = chunk.length / (done + chunk.length);
        means[i] += delta * share;
        squares[i] += around + delta * delta * done * share;
      }
      done += chunk.length;
    });
    for (int64_t i = 0; i < strip.results(); i++) {
      double* out = strip.sums(MOMENTS, i);
      out[0] = means[i];
      out[1] = squares[i];
    }
  });
}

// Adds up `number` values over the strip. f(x, dy, sum) adds those of one vector to `sum`.
template <int number, typename T, typename ThisStrip, typename F>
INLINE void sum_up(const Pass<T>& pass, const ThisStrip& strip, F f) {
  double total[number][ThisStrip::max_results] = {};
  strip.each_chunk([&](auto chunk) INLINE_LAMBDA {
    typename ThisStrip::V sum[number] = {};
    chunk.each_vector([&](int, int64_t at, auto count) INLINE_LAMBDA {
      f(load(pass.x + at, count), load(pass.dy + at, count), sum);
    });
    ThisStrip::add(sum, total);
  });
  for (int64_t i = 0; i < strip.results(); i++) {
    double* out = strip.sums(number, i);
    for (int k = 0; k < number; k++) out[k] = total[k][i];
  }
}

// A float16 output is bounded, as a large constant divided by sqrt(eps) would be infinite.
template <typename T, typename V>
inline V saturated(V y) {
  if (!std::is_same<T, Half>::value) return y;
  return clamp(y, V{} - 65504, V{} + 65504);
}

template <typename T>
void s_forward(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    const auto rate = strip.coefficient(SeriesS::RATE), scale = strip.coefficient(SeriesS::SCALE),
               bias = strip.coefficient(SeriesS::BIAS);
    strip.each_vector([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count);
      store(pass.out + at, saturated<T>(x * scale / (1 + exp2(rate * x)) + bias), count);
    });
  });
}

template <typename T>
void s_sums(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    const auto rate = strip.coefficient(SeriesS::RATE);
    sum_up<SeriesS::SUMS>(pass, strip, [&](auto x, auto dy, auto* sum) INLINE_LAMBDA {
      const auto e = exp2(rate * x), gate = 1 / (1 + e), by_scale = dy * x * gate;
      sum[SeriesS::BY_SCALE] += by_scale;
      sum[SeriesS::BY_BIAS] += dy;
      sum[SeriesS::BY_V] += by_scale * x * (e * gate);  // e * gate = 1 - gate
    });
  });
}

template <typename T> constexpr typename Wide<T>::type LN2 = 0.693147180559945309417;

template <typename T>
void s_backward(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    const auto rate = strip.coefficient(SeriesS::RATE), scale = strip.coefficient(SeriesS::SCALE),
               centre = strip.coefficient(SeriesS::CENTRE), p = strip.coefficient(SeriesS::P),
               q = strip.coefficient(SeriesS::Q);
    strip.each_vector([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count), dy = load(pass.dy + at, count);
      const auto t = rate * x, e = exp2(t), gate = 1 / (1 + e);
      // t * LN2 = -v * x, and e * gate = 1 - gate
      const auto direct = dy * scale * gate * (1 - t * LN2<T> * (e * gate));
      store(pass.out + at, direct + (p * (x - centre) + q), count);
    });
  });
}

template <typename T>
void b_forward(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    const auto slope = strip.coefficient(SeriesB::SLOPE), rise = strip.coefficient(SeriesB::RISE),
               floor = strip.coefficient(SeriesB::FLOOR), scale = strip.coefficient(SeriesB::SCALE),
               bias = strip.coefficient(SeriesB::BIAS);
    strip.each_vector([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count);
      store(pass.out + at, saturated<T>(x * scale / greater(floor, slope * x + rise) + bias), count);
    });
  });
}

template <typename T>
void b_sums(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    const auto slope = strip.coefficient(SeriesB::SLOPE), rise = strip.coefficient(SeriesB::RISE),
               floor = strip.coefficient(SeriesB::FLOOR);
    sum_up<SeriesB::SUMS>(pass, strip, [&](auto x, auto dy, auto* sum) INLINE_LAMBDA {
      const decltype(x) line = slope * x + rise, inverse = 1 / greater(floor, line);
      const decltype(x) by_scale = dy * x * inverse, by_den = by_scale * inverse;
      const decltype(x) by_line = line <= floor ? decltype(x){} : by_den;
      sum[SeriesB::BY_SCALE] += by_scale;
      sum[SeriesB::BY_BIAS] += dy;
      sum[SeriesB::BY_FLOOR] += by_den - by_line;
      sum[SeriesB::BY_RISE] += by_line;
      sum[SeriesB::BY_SLOPE] += by_line * x;
    });
  });
}

template <typename T>
void b_backward(const Pass<T>& pass, int64_t first_item, int64_t items) {
  over_strips(pass, first_item, items, [&](auto strip) INLINE_LAMBDA {
    const auto slope = strip.coefficient(SeriesB::SLOPE), rise = strip.coefficient(SeriesB::RISE),
               floor = strip.coefficient(SeriesB::FLOOR), scale = strip.coefficient(SeriesB::SCALE),
               centre = strip.coefficient(SeriesB::CENTRE), p = strip.coefficient(SeriesB::P),
               q = strip.coefficient(SeriesB::Q);
    strip.each_vector([&](int, int64_t at, auto count) INLINE_LAMBDA {
      const auto x = load(pass.x + at, count), dy = load(pass.dy + at, count);
      const decltype(x) line = slope * x + rise, inverse = 1 / greater(floor, line);
      const decltype(x) from_line = line <= floor ? decltype(x){} : x * inverse * slope;
      const decltype(x) direct = dy * scale * inverse * (1 - from_line);
      store(pass.out + at, direct + (p * (x - centre) + q), count);
    });
  });
}

}  // namespace

template <typename T>
const Kernels<T>& INSTRUCTION_SET() {
  static constexpr Kernels<T> kernels{moments<T>,   s_forward<T>, s_sums<T>,    s_backward<T>,
                                      b_forward<T>, b_sums<T>,    b_backward<T>};
  return kernels;
}
template const Kernels<float>& INSTRUCTION_SET<float>();
template const Kernels<double>& INSTRUCTION_SET<double>();
template const Kernels<BFloat16>& INSTRUCTION_SET<BFloat16>();
template const Kernels<Half>& INSTRUCTION_SET<Half>();

}  // namespace evonorm
