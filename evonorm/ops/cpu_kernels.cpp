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
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)x, even = _mm512_set1_epi32(0x7fff), odd = _mm512_set1_epi32(0x8000);
  const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_mask_mov_epi32(even, is_odd, odd));
  return (U16)_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#else
  const U32 bits = (U32)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#if defined(__AVX2__)
  const __m256i r = (__m256i)rounded;
  return (U16)_mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
#endif
  return __builtin_convertvector(rounded, U16);
#endif
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

INLINE float value(float x) { return x; }
INLINE double value(double x) { return x; }
INLINE float value(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof(y));
  return y;
}
INLINE float value(Half x) {
  const U16 bits = {x.bits};
  return widen(bits, x)[0];
}

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
#elif defined(__AVX2__)
INLINE Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
INLINE Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
#endif

// a in the first `count` lanes, and b in the other lanes.
INLINE Vector<float> first_lanes(Vector<float> a, Vector<float> b, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_mask_mov_ps(b, (1u << count) - 1, a);
#elif defined(__AVX2__)
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask(count)));
#endif
  for (int64_t i = count; i < VectorOf<float>::lanes; i++) a[i] = b[i];
  return a;
}
INLINE Vector<double> first_lanes(Vector<double> a, Vector<double> b, int64_t count) {
  for (int64_t i = count; i < VectorOf<double>::lanes; i++) a[i] = b[i];
  return a;
}

template <typename V>
INLINE V clamp(V x, V low, V high) {
  return lesser(high, greater(low, x));
}

// 2^r for |r| <= 1/2, by a minimax polynomial: relative error 9e-8. Its pairs of terms don't wait for
// each other.
INLINE Vector<float> exp2_of_fraction(Vector<float> r) {
  const Vector<float> square = r * r, low = r * 6.93147e-1f + 1,
                      middle = r * 5.5507336e-2f + 2.4022242e-1f,
                      high = r * 1.3264727e-3f + 9.671513e-3f;
  return (high * square + middle) * square + low;
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
  if constexpr (number == 2) {
    __m512 x = _mm512_shuffle_f32x4(vectors[0], vectors[1], 0x44) +
               _mm512_shuffle_f32x4(vectors[0], vectors[1], 0xee);
    x += _mm512_shuffle_f32x4(x, x, 0xb1);
    x += _mm512_shuffle_ps(x, x, 0x4e);
    x += _mm512_shuffle_ps(x, x, 0xb1);
    out[0] = x[0];
    out[1] = x[8];
    return;
  }
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
    A of_plane = 0;
    const int64_t step = (length - 1) / 3 * stride;
    for (int64_t k = 0; k < 4; k++) {
      const T* p = pass.x + begin + k * step;
      if (last) sum += load(p, width);
      else of_plane += value(*p);
    }
    return (last ? sum : V{} + of_plane) / 4;
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

template <typename T>
INLINE Strip<T, false> strip_of(const Pass<T>& pass, int64_t plane, int64_t piece) {
  const int64_t start = piece * pass.piece_size, rest = pass.plane_size - start;
  return {pass, plane, piece, plane * pass.plane_size + start,
          rest < pass.piece_size ? rest : pass.piece_size, 1};
}

// Calls f for each strip of the items of a contiguous tensor, with the strip after it in memory. A
// division for each would take longer than some strips do.
template <typename T, typename F>
INLINE void each_strip(const Pass<T>& pass, int64_t first_item, int64_t items, F f) {
  int64_t plane = first_item / pass.pieces, piece = first_item % pass.pieces;
  for (int64_t k = 0; k < items; k++) {
    const auto strip = strip_of(pass, plane, piece);
    if (++piece == pass.pieces) plane++, piece = 0;
    f(strip, strip_of(pass, plane, piece));
  }
}

// Calls f for each strip of the items of a channels_last tensor.
template <typename T, typename F>
INLINE void each_strip_last(const Pass<T>& pass, int64_t first_item, int64_t items, F f) {
  constexpr int64_t lanes = Strip<T, true>::lanes;
  for (int64_t item = first_item; item < first_item + items; item++) {
    const int64_t n = item / pass.pieces, piece = item % pass.pieces, start = piece * pass.piece_size;
    const int64_t rest = pass.plane_size - start, begin = (n * pass.plane_size + start) * pass.channels;
    for (int64_t c = 0; c < pass.channels; c += lanes) {
      const int64_t width = pass.channels - c < lanes ? pass.channels - c : lanes;
      f(Strip<T, true>{pass, n * pass.channels + c, piece, begin + c,
                       rest < pass.piece_size ? rest : pass.piece_size, width});
    }
  }
}

// The same for both layouts, so that a kernel is a function of a strip.
template <typename T, typename F>
INLINE void over_strips(const Pass<T>& pass, int64_t first_item, int64_t items, F f) {
  if (pass.channels_last) return each_strip_last(pass, first_item, items, f);
  each_strip(pass, first_item, items, [&](auto strip, auto) INLINE_LAMBDA { f(strip); });
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
        if (pass.out) __builtin_prefetch(pass.out + at, 1);  // for the map that follows
        V d = load(pass.x + at, count) - shift;
        if (!is_all(count)) d = first_lanes(d, V{}, count);
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

// Writes f(c, x, dy) for each value: c are the first `number` coefficients, and `dy` is 0 in a forward
// pass. The strips of a contiguous tensor follow each other in memory: where one ends within a
// vector, the other lanes take values of the next strip, with its coefficients. On 7x7 maps of
// bfloat16 that saves a quarter of the time; float32, whose maps wait for the memory, lost as much.
template <int number, bool backward, typename T, typename F>
INLINE void map(const Pass<T>& pass, int64_t first_item, int64_t items, F f) {
  using V = Vector<typename Wide<T>::type>;
  const T *const x = pass.x, *const dy = pass.dy;
  T* const out = pass.out;
  const auto write = [&](const V* c, int64_t at, auto count) INLINE_LAMBDA {
    if (pass.ahead > 0) __builtin_prefetch(x + at + pass.ahead);
    if (pass.ahead > 0 && backward) __builtin_prefetch(dy + at + pass.ahead);
    const V y = f(c, load(x + at, count), backward ? load(dy + at, count) : V{});
    store(out + at, backward ? y : saturated<T>(y), count);
  };
  V c[number];
  const auto on_strip = [&](const auto& strip) INLINE_LAMBDA {
    for (int k = 0; k < number; k++) c[k] = strip.coefficient(k);
    strip.each_vector([&](int, int64_t at, auto count) INLINE_LAMBDA { write(c, at, count); });
  };
  if (sizeof(T) != 2 || pass.channels_last) return over_strips(pass, first_item, items, on_strip);
  int64_t taken = 0;  // values of this strip that the vector before it has taken
  int64_t left = items;
  each_strip(pass, first_item, items, [&](auto strip, const auto& next) INLINE_LAMBDA {
    strip.begin += taken;
    strip.length -= taken;
    const int64_t rest = strip.length % strip.lanes, more = strip.lanes - rest;
    taken = 0;
    if (--left == 0 || rest == 0 || next.length < more) return on_strip(strip);
    taken = more;
    strip.length -= rest;
    on_strip(strip);
    for (int k = 0; k < number; k++) c[k] = first_lanes(c[k], next.coefficient(k), rest);
    write(c, strip.begin + strip.length, All<typename Wide<T>::type>{});
  });
}

template <typename T>
void s_forward(const Pass<T>& pass, int64_t first_item, int64_t items) {
  using S = SeriesS;
  map<S::FORWARD, false>(pass, first_item, items, [&](auto* c, auto x, auto) INLINE_LAMBDA {
    return x / (1 + exp2(c[S::RATE] * x)) * c[S::SCALE] + c[S::BIAS];
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
  using S = SeriesS;
  map<S::BACKWARD, true>(pass, first_item, items, [&](auto* c, auto x, auto dy) INLINE_LAMBDA {
    const decltype(x) t = c[S::RATE] * x, e = exp2(t), gate = 1 / (1 + e);
    // t * LN2 = -v * x, and e * gate = 1 - gate
    const decltype(x) direct = dy * c[S::SCALE] * gate * (1 - t * LN2<T> * (e * gate));
    return direct + (c[S::P] * (x - c[S::CENTRE]) + c[S::Q]);
  });
}

template <typename T>
void b_forward(const Pass<T>& pass, int64_t first_item, int64_t items) {
  using B = SeriesB;
  map<B::FORWARD, false>(pass, first_item, items, [&](auto* c, auto x, auto) INLINE_LAMBDA {
    return x / greater(c[B::FLOOR], c[B::SLOPE] * x + c[B::RISE]) * c[B::SCALE] + c[B::BIAS];
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
  using B = SeriesB;
  map<B::BACKWARD, true>(pass, first_item, items, [&](auto* c, auto x, auto dy) INLINE_LAMBDA {
    const decltype(x) line = c[B::SLOPE] * x + c[B::RISE], inverse = 1 / greater(c[B::FLOOR], line);
    const decltype(x) from_line = line <= c[B::FLOOR] ? decltype(x){} : x * inverse * c[B::SLOPE];
    const decltype(x) direct = dy * c[B::SCALE] * inverse * (1 - from_line);
    return direct + (c[B::P] * (x - c[B::CENTRE]) + c[B::Q]);
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
