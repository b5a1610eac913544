// The loops that evaluate a formula, in the words of cpu_formula.h. setup.py compiles this file once
// per instruction set, as cpu_kernels.cpp; the compiler makes vectors of the loops. The conventions
// of gradients where there is none (ties of a maximum, 0 under a root) are PyTorch's.
#include "cpu_formula.h"

#include <type_traits>

namespace evonorm {
namespace {

#define INLINE inline __attribute__((always_inline))
#define LAMBDA __attribute__((always_inline))

INLINE double exp_(double x) { return __builtin_exp(x); }
INLINE double log_(double x) { return __builtin_log(x); }
INLINE double tanh_(double x) { return __builtin_tanh(x); }
INLINE double sqrt_(double x) { return __builtin_sqrt(x); }
INLINE float sqrt_(float x) { return __builtin_sqrtf(x); }
template <typename T>
INLINE T abs_(T x) { return x < 0 ? -x : x; }
template <typename T>
INLINE T sign(T x) { return T(x > 0) - T(x < 0); }

template <typename To, typename From>
INLINE To bits(From x) {
  To y;
  __builtin_memcpy(&y, &x, sizeof(y));
  return y;
}

// The polynomials are those of Cephes (Moshier), for single precision.
INLINE float exp_(float x) {
  float t = x < -104.f ? -104.f : x;  // a NaN stays one
  t = t > 89.f ? 89.f : t;
  const float n = (t * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
  const float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.f;
  const int32_t i = int32_t(n), half = i >> 1;  // in two halves, as 2^128 is no number
  return y * bits<float>(uint32_t(half + 127) << 23) * bits<float>(uint32_t(i - half + 127) << 23);
}

INLINE float log_(float x) {
  const bool tiny = x < 0x1p-126f;
  const float scaled = tiny ? x * 0x1p23f : x;
  const uint32_t b = bits<uint32_t>(scaled);
  float m = bits<float>((b & 0x007fffff) | 0x3f000000);
  float e = float(int32_t(b >> 23 & 0xff) - 126) - (tiny ? 23.f : 0.f);
  const bool low = m < 0.707106781f;
  e = low ? e - 1.f : e;
  m = (low ? m + m : m) - 1.f;
  const float z = m * m;
  float y = m * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * z - e * 2.12194440e-4f - 0.5f * z;
  y = m + y + e * 0.693359375f;
  y = x == __builtin_inff() ? x : y;
  y = x == 0.f ? -__builtin_inff() : y;
  return x >= 0.f ? y : __builtin_nanf("");  // of a NaN as well
}

INLINE float tanh_(float x) {
  const float a = abs_(x), z = x * x;
  float y = z * -5.70498872745e-3f + 2.06390887954e-2f;
  y = y * z - 5.37397155531e-2f;
  y = y * z + 1.33314422036e-1f;
  y = y * z - 3.33332819422e-1f;
  const float big = 1.f - 2.f / (exp_(2.f * a) + 1.f);
  return a < 0.625f ? y * z * x + x : x < 0 ? -big : big;
}

template <typename T>
INLINE T sigmoid(T x) { return T(1) / (T(1) + exp_(-x)); }
template <typename T>
INLINE T larger(T a, T b) { return (a > b) | (a != a) ? a : b; }

template <typename F>
INLINE void each(int64_t n, F f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) f(i);
}

// Adds f(i) to each value of `to`, which holds nothing yet if this is the first time.
template <typename T, typename F>
INLINE void give(T* to, bool first, int64_t n, F f) {
  if (first) {
    each(n, [=](int64_t i) LAMBDA { to[i] = f(i); });
  } else {
    each(n, [=](int64_t i) LAMBDA { to[i] += f(i); });
  }
}

// The values of some channels as rows: a row is a channel, or with channels_last one or several
// pixels, so that it is some vectors long.
template <typename T>
struct Rows {
  bool last;
  int64_t channels, pixels, fold, rows, width;
  T* spare;  // three rows

  Rows(bool channels_last, int64_t channels_, int64_t pixels_, T* spare_)
      : last(channels_last), channels(channels_), pixels(pixels_), fold(1), spare(spare_) {
    while (last && channels * fold * 2 <= WIDE && pixels % (fold * 2) == 0) fold *= 2;
    rows = last ? pixels / fold : channels;
    width = last ? channels * fold : pixels;
  }

  INLINE T* repeated(const T* by_channel, int which) const {
    T* wide = spare + which * width;
    for (int64_t k = 0; k < fold; k++) {
      each(channels, [=](int64_t i) LAMBDA { wide[k * channels + i] = by_channel[i]; });
    }
    return wide;
  }

  // Calls f(i, p, q) for each value, with the values of its channel in p and in q.
  template <typename F>
  INLINE void map(const T* p, const T* q, F f) const {
    if (!last) {
      for (int64_t row = 0; row < rows; row++) {
        const T one = p[row], two = q[row];
        each(width, [=](int64_t i) LAMBDA { f(row * width + i, one, two); });
      }
      return;
    }
    const T *one = repeated(p, 0), *two = q == p ? one : repeated(q, 1);
    for (int64_t row = 0; row < rows; row++) {
      each(width, [=](int64_t i) LAMBDA { f(row * width + i, one[i], two[i]); });
    }
  }

  // The sum over the pixels of f(i, p), for each channel.
  template <typename F>
  INLINE void sum(T* out, const T* p, F f) const {
    if (!last) {
      for (int64_t row = 0; row < rows; row++) {
        const T one = p[row];
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < width; i++) total += f(row * width + i, one);
        out[row] = total;
      }
      return;
    }
    T *one = repeated(p, 0), *part = spare + width, *total = spare + 2 * width;
    each(width, [=](int64_t i) LAMBDA { total[i] = 0; });
    for (int64_t row = 0; row < rows;) {  // sums of sums, which round less
      const int64_t end = rows - row < 32 ? rows : row + 32;
      each(width, [=](int64_t i) LAMBDA { part[i] = f(row * width + i, one[i]); });
      for (row++; row < end; row++) {
        each(width, [=](int64_t i) LAMBDA { part[i] += f(row * width + i, one[i]); });
      }
      each(width, [=](int64_t i) LAMBDA { total[i] += part[i]; });
    }
    each(channels, [=](int64_t i) LAMBDA { out[i] = total[i]; });
    for (int64_t k = 1; k < fold; k++) {
      each(channels, [=](int64_t i) LAMBDA { out[i] += total[k * channels + i]; });
    }
  }
};

template <typename T>
struct Unit {
  const Formula<T>& f;
  T* scratch;
  int64_t sample, begin, channels;

  Unit(const Formula<T>& formula, T* scratch_, int64_t unit)
      : f(formula), scratch(scratch_), sample(unit / f.units_per_sample),
        begin(unit % f.units_per_sample * f.unit_channels),
        channels(f.channels - begin < f.unit_channels ? f.channels - begin : f.unit_channels) {}

  T* value(int64_t step) const { return scratch + f.steps[step].value; }
  T* gradient(int64_t step) const { return scratch + f.steps[step].gradient; }
  T* spare_channels() const { return scratch + f.spare; }
  Rows<T> rows(bool full) const {
    T* spare = scratch + f.spare + f.padded_channels;
    return full ? Rows<T>(f.channels_last, channels, f.pixels, spare)
                : Rows<T>(true, channels, 1, spare);
  }
  // How many values a loop over all of a result takes: whole vectors.
  int64_t size(bool full) const {
    const int64_t values = full ? channels * f.pixels : channels;
    return (values + LANES - 1) / LANES * LANES;
  }

  // Calls copy(here, there, how many) for each part of the unit that lies together in the tensor.
  template <typename F>
  INLINE void parts(F copy) const {
    if (!f.channels_last || channels == f.channels) {
      copy(int64_t(0), (sample * f.channels + begin) * f.pixels, channels * f.pixels);
      return;
    }
    for (int64_t p = 0; p < f.pixels; p++) {
      copy(p * channels, (sample * f.pixels + p) * f.channels + begin, channels);
    }
  }
  void load(T* to, const T* from) const {
    parts([=](int64_t here, int64_t there, int64_t n) LAMBDA {
      __builtin_memcpy(to + here, from + there, n * sizeof(T));
    });
  }
  void load_channels(T* to, const T* from) const {
    __builtin_memcpy(to, from + begin, channels * sizeof(T));
  }

  // Puts the mean of what was summed for each channel in its place.
  void combine(T* sums, int64_t over, int64_t per_channel, bool mean) const {
    const int64_t together = over == IMAGE ? 1 : over == GROUP ? f.group_channels : channels;
    const T count = mean ? T(together * per_channel) : T(1);
    for (int64_t c = 0; c < channels; c += together) {
      T total = 0;
      for (int64_t k = c; k < c + together; k++) total += sums[k];
      for (int64_t k = c; k < c + together; k++) sums[k] = total / count;
    }
  }

  void aggregate(const Step& s) const {
    const bool full = f.steps[s.a].full;
    const int64_t pixels = full ? f.pixels : 1;
    const Rows<T> r = rows(full);
    const T* a = value(s.a);
    T *y = scratch + s.value, *mean = scratch + s.mean;
    if (s.op == RMS) {
      r.sum(y, y, [=](int64_t i, T) LAMBDA { return a[i] * a[i]; });
    } else {
      r.sum(y, y, [=](int64_t i, T) LAMBDA { return a[i]; });
    }
    combine(y, s.b, pixels, true);
    if (s.op == MEAN) return;
    if (s.op == STD) {
      each(channels, [=](int64_t i) LAMBDA { mean[i] = y[i]; });
      r.sum(y, mean, [=](int64_t i, T m) LAMBDA { return (a[i] - m) * (a[i] - m); });
      combine(y, s.b, pixels, true);
    }
    const T eps = f.eps;
    each(channels, [=](int64_t i) LAMBDA { y[i] = sqrt_(y[i] + eps); });
  }

  void aggregate_back(const Step& s) const {
    const bool full = f.steps[s.a].full, first = s.first_a;
    const int64_t pixels = full ? f.pixels : 1;
    const int64_t together = s.b == IMAGE ? 1 : s.b == GROUP ? f.group_channels : channels;
    const Rows<T> r = rows(full);
    const T *a = value(s.a), *y = scratch + s.value, *mean = scratch + s.mean;
    T *to = gradient(s.a), *share = spare_channels();
    const T* g = scratch + s.gradient;
    each(channels, [=](int64_t i) LAMBDA { share[i] = g[i]; });
    combine(share, s.b, pixels, false);
    const T count = T(together * pixels);
    const bool plain = s.op == MEAN;
    each(channels, [=](int64_t i) LAMBDA { share[i] /= plain ? count : count * y[i]; });
    const auto add = [=](auto f) LAMBDA {
      if (first) {
        r.map(share, mean, [=](int64_t i, T q, T m) LAMBDA { to[i] = f(i, q, m); });
      } else {
        r.map(share, mean, [=](int64_t i, T q, T m) LAMBDA { to[i] += f(i, q, m); });
      }
    };
    if (s.op == MEAN) add([=](int64_t, T q, T) LAMBDA { return q; });
    if (s.op == STD) add([=](int64_t i, T q, T m) LAMBDA { return q * (a[i] - m); });
    if (s.op == RMS) add([=](int64_t i, T q, T) LAMBDA { return q * a[i]; });
  }

  void run(const Step& s) const {
    const T *a = value(s.a), *b = value(s.b), eps = f.eps, number = T(s.number);
    T* y = scratch + s.value;
    const int64_t n = size(s.full);
    const auto of_a = [=](auto op) LAMBDA { each(n, [=](int64_t i) LAMBDA { y[i] = op(a[i]); }); };
    const auto of_both = [=](auto op) LAMBDA {
      each(n, [=](int64_t i) LAMBDA { y[i] = op(a[i], b[i]); });
    };
    switch (s.op) {
      case X: return load(y, f.x);
      case V0: return load_channels(y, f.v0);
      case V1: return load_channels(y, f.v1);
      case STATISTIC: return load_channels(y, f.statistics + s.a * f.channels);
      case NUMBER: return each(n, [=](int64_t i) LAMBDA { y[i] = number; });
      case EXPAND:
        return rows(true).map(a, a, [=](int64_t i, T p, T) LAMBDA { y[i] = p; });
      case ADD: return of_both([](T p, T q) LAMBDA { return p + q; });
      case SUB: return of_both([](T p, T q) LAMBDA { return p - q; });
      case MUL: return of_both([](T p, T q) LAMBDA { return p * q; });
      case DIV: return of_both([](T p, T q) LAMBDA { return p / q; });
      case NEG: return of_a([](T p) LAMBDA { return -p; });
      case MAX: return of_both([](T p, T q) LAMBDA { return larger(p, q); });
      case RELU: return of_a([](T p) LAMBDA { return larger(p, T(0)); });
      case AT_LEAST: return of_a([=](T p) LAMBDA { return larger(p, number); });
      case SIGMOID: return of_a([](T p) LAMBDA { return sigmoid(p); });
      case TANH: return of_a([](T p) LAMBDA { return tanh_(p); });
      case EXP: return of_a([](T p) LAMBDA { return exp_(p); });
      case LOG: return of_a([](T p) LAMBDA { return log_(p); });
      case SIGNED_LOG: return of_a([=](T p) LAMBDA { return sign(p) * log_(abs_(p) + eps); });
      case ABS: return of_a([](T p) LAMBDA { return abs_(p); });
      case SQUARE: return of_a([](T p) LAMBDA { return p * p; });
      case SQRT: return of_a([](T p) LAMBDA { return sqrt_(p); });
      case SIGNED_SQRT: return of_a([](T p) LAMBDA { return sign(p) * sqrt_(abs_(p)); });
      case ROOT: return of_a([=](T p) LAMBDA { return sqrt_(p + eps); });
      case GUARDED: return of_a([=](T p) LAMBDA { return p + eps * sign(p); });
      default: return aggregate(s);
    }
  }

  void run_back(const Step& s) const {
    const T *a = value(s.a), *b = value(s.b), eps = f.eps, number = T(s.number);
    const T *y = scratch + s.value, *g = scratch + s.gradient;
    const int64_t n = size(s.full);
    const auto to_a = [=](auto op) LAMBDA {
      if (f.steps[s.a].varies) give(gradient(s.a), s.first_a, n, op);
    };
    const auto to_b = [=](auto op) LAMBDA {
      if (f.steps[s.b].varies) give(gradient(s.b), s.first_b, n, op);
    };
    switch (s.op) {
      case X: case V0: case V1: case STATISTIC: case NUMBER: return;
      case EXPAND: {
        T* to = gradient(s.a);
        if (s.first_a) return rows(true).sum(to, a, [=](int64_t i, T) LAMBDA { return g[i]; });
        T* total = spare_channels();
        rows(true).sum(total, a, [=](int64_t i, T) LAMBDA { return g[i]; });
        return each(channels, [=](int64_t i) LAMBDA { to[i] += total[i]; });
      }
      case ADD:
        to_a([=](int64_t i) LAMBDA { return g[i]; });
        return to_b([=](int64_t i) LAMBDA { return g[i]; });
      case SUB:
        to_a([=](int64_t i) LAMBDA { return g[i]; });
        return to_b([=](int64_t i) LAMBDA { return -g[i]; });
      case MUL:
        to_a([=](int64_t i) LAMBDA { return g[i] * b[i]; });
        return to_b([=](int64_t i) LAMBDA { return g[i] * a[i]; });
      case DIV:
        to_a([=](int64_t i) LAMBDA { return g[i] / b[i]; });
        return to_b([=](int64_t i) LAMBDA { return -g[i] * (y[i] / b[i]); });
      case NEG: return to_a([=](int64_t i) LAMBDA { return -g[i]; });
      case MAX:
        to_a([=](int64_t i) LAMBDA {
          return a[i] < b[i] ? T(0) : a[i] == b[i] ? g[i] / 2 : g[i];
        });
        return to_b([=](int64_t i) LAMBDA {
          return a[i] > b[i] ? T(0) : a[i] == b[i] ? g[i] / 2 : g[i];
        });
      case RELU: return to_a([=](int64_t i) LAMBDA { return y[i] <= 0 ? T(0) : g[i]; });
      case AT_LEAST: return to_a([=](int64_t i) LAMBDA { return a[i] > number ? g[i] : T(0); });
      case SIGMOID: return to_a([=](int64_t i) LAMBDA { return g[i] * (1 - y[i]) * y[i]; });
      case TANH: return to_a([=](int64_t i) LAMBDA { return g[i] * (1 - y[i] * y[i]); });
      case EXP: return to_a([=](int64_t i) LAMBDA { return g[i] * y[i]; });
      case LOG: return to_a([=](int64_t i) LAMBDA { return g[i] / a[i]; });
      case SIGNED_LOG:
        return to_a([=](int64_t i) LAMBDA {
          return g[i] * sign(a[i]) / (abs_(a[i]) + eps) * sign(a[i]);
        });
      case ABS: return to_a([=](int64_t i) LAMBDA { return g[i] * sign(a[i]); });
      case SQUARE: return to_a([=](int64_t i) LAMBDA { return g[i] * 2 * a[i]; });
      case SQRT: case ROOT: return to_a([=](int64_t i) LAMBDA { return g[i] / (2 * y[i]); });
      case SIGNED_SQRT:
        return to_a([=](int64_t i) LAMBDA {
          return g[i] * sign(a[i]) / (2 * sqrt_(abs_(a[i]))) * sign(a[i]);
        });
      case GUARDED: return to_a([=](int64_t i) LAMBDA { return g[i]; });
      default:
        if (f.steps[s.a].varies) aggregate_back(s);
    }
  }

  void evaluate() const {
    for (int64_t k = 0; k < f.count; k++) run(f.steps[k]);
  }

  // The root is full. Where no weight or bias is given it stands in, unused.
  void forward() const {
    evaluate();
    T* y = value(f.count - 1);
    const T *w = f.weight ? f.weight + begin : nullptr, *b = f.bias ? f.bias + begin : nullptr;
    const Rows<T> r = rows(true);
    if (w && b) {
      r.map(w, b, [=](int64_t i, T p, T q) LAMBDA { y[i] = y[i] * p + q; });
    } else if (w) {
      r.map(w, w, [=](int64_t i, T p, T) LAMBDA { y[i] *= p; });
    } else if (b) {
      r.map(b, b, [=](int64_t i, T q, T) LAMBDA { y[i] += q; });
    }
    store(y);
  }

  void store(const T* from) const {
    T* out = f.out;
    parts([=](int64_t here, int64_t there, int64_t n) LAMBDA {
      __builtin_memcpy(out + there, from + here, n * sizeof(T));
    });
  }

  void backward() const {
    evaluate();
    const int64_t root = f.count - 1;
    const Rows<T> r = rows(true);
    const T* y = value(root);
    T* g = gradient(root);
    load(g, f.dy);
    T* total = spare_channels();
    if (f.bias) {
      r.sum(total, total, [=](int64_t i, T) LAMBDA { return g[i]; });
      keep(3, total);
    }
    if (f.weight) {
      r.sum(total, total, [=](int64_t i, T) LAMBDA { return g[i] * y[i]; });
      keep(2, total);
      const T* w = f.weight + begin;
      r.map(w, w, [=](int64_t i, T p, T) LAMBDA { g[i] *= p; });
    }
    for (int64_t k = root; k >= 0; k--) {
      const Step& s = f.steps[k];
      if (!s.varies) continue;
      run_back(s);
      if (s.op == X) store(gradient(k));
      if (s.op == V0) keep(0, gradient(k));
      if (s.op == V1) keep(1, gradient(k));
      if (s.op == STATISTIC) keep(4 + s.a, gradient(k));
    }
  }

  void keep(int64_t row, const T* from) const {
    T* to = f.sums + (sample * f.rows + row) * f.channels + begin;
    __builtin_memcpy(to, from, channels * sizeof(T));
  }
};

template <typename T>
void forward(const Formula<T>& f, T* scratch, int64_t first_unit, int64_t end_unit) {
  for (int64_t k = first_unit; k < end_unit; k++) Unit<T>(f, scratch, k).forward();
}

template <typename T>
void backward(const Formula<T>& f, T* scratch, int64_t first_unit, int64_t end_unit) {
  for (int64_t k = first_unit; k < end_unit; k++) Unit<T>(f, scratch, k).backward();
}

}  // namespace

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

template <typename T>
const FormulaKernels<T>& JOIN(formula_, INSTRUCTION_SET)() {
  static constexpr FormulaKernels<T> kernels = {forward<T>, backward<T>};
  return kernels;
}
template const FormulaKernels<float>& JOIN(formula_, INSTRUCTION_SET)<float>();
template const FormulaKernels<double>& JOIN(formula_, INSTRUCTION_SET)<double>();

}  // namespace evonorm
