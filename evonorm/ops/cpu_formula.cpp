// The operators that evaluate a formula, and its gradient, on a CPU; see cpu_formula.h.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu_formula.h"

namespace evonorm {
namespace {

using at::Tensor;
using std::optional;
using Parameter = const optional<Tensor>&;

constexpr int64_t UNIT = 4096;    // values of a full result, which a cache of 48 KB holds thrice
constexpr int64_t GRAIN = 16384;  // how many values are worth a thread
constexpr int64_t APART = 3 * LANES;  // between results, as a cache mixes up what is 4 KB apart

template <typename T>
const FormulaKernels<T>& kernels() {
  static const std::string capability = at::get_cpu_capability();
#ifdef EVONORM_X86
  if (capability == "AVX512") return formula_avx512<T>();
  if (capability == "AVX2") return formula_avx2<T>();
#endif
  return formula_baseline<T>();
}

std::vector<Step> read(at::IntArrayRef program, at::ArrayRef<double> numbers) {
  const int64_t count = numbers.size();
  TORCH_CHECK(count > 0 && program.size() == size_t(4 * count), "a step is four integers and a number");
  std::vector<Step> steps(count);
  for (int64_t k = 0; k < count; k++) {
    const int64_t* p = program.data() + 4 * k;
    Step& s = steps[k];
    s = {Op(p[0]), p[1], p[2], p[3] != 0, numbers[k], 0, 0, 0, false, true, true};
    TORCH_CHECK(p[0] >= 0 && p[0] < OPS && p[1] >= 0 && p[2] >= 0 &&
                    (s.op <= NUMBER || (p[1] < k && (s.op >= MEAN || p[2] < k))),
                "step ", k, " is broken");
    s.varies = s.op < NUMBER || (s.op > NUMBER && steps[s.a].varies) ||
               (s.op >= EXPAND && s.op < MEAN && steps[s.b].varies);
  }
  TORCH_CHECK(steps.back().full, "the last step should be full");
  std::vector<bool> given(count);
  for (int64_t k = count - 1; k >= 0; k--) {
    Step& s = steps[k];
    if (s.op <= NUMBER || !s.varies) continue;
    s.first_a = !given[s.a];
    given[s.a] = true;
    if (s.op >= ADD && s.op <= MAX && s.op != NEG) {
      s.first_b = !given[s.b];
      given[s.b] = true;
    }
  }
  return steps;
}

// What one evaluation works on, as `formula`; the tensors that it points into are kept.
template <typename T>
struct Work {
  std::vector<Step> steps;
  std::vector<Tensor> kept;
  Formula<T> formula{};
  at::MemoryFormat format;

  Work(const Tensor& given, Parameter v0, Parameter v1, Parameter weight, Parameter bias,
       Parameter statistics, at::IntArrayRef program, at::ArrayRef<double> numbers, int64_t groups,
       double eps)
      : steps(read(program, numbers)) {
    TORCH_CHECK(given.dim() == 4, "x should be (N, C, H, W), not of shape ", given.sizes());
    format = given.is_contiguous() ? at::MemoryFormat::Contiguous : given.suggest_memory_format();
    const int64_t channels = given.size(1), pixels = given.size(2) * given.size(3);
    TORCH_CHECK(groups > 0 && channels % groups == 0,
                groups, " groups don't divide ", channels, " channels");
    Formula<T>& f = formula;
    f.eps = T(eps);
    f.batch = given.size(0);
    f.channels = channels;
    f.pixels = pixels;
    f.group_channels = channels / groups;
    f.channels_last = pixels == 1 || format == at::MemoryFormat::ChannelsLast;
    f.x = data(given.contiguous(format), given.numel());
    int64_t count = 0;
    for (const Step& s : steps) {
      TORCH_CHECK((s.op != V0 || v0) && (s.op != V1 || v1), "the formula has a vector that is missing");
      if (s.op == STATISTIC) count = std::max(count, s.a + 1);
    }
    f.v0 = vector(v0, channels);
    f.v1 = vector(v1, channels);
    f.weight = vector(weight, channels);
    f.bias = vector(bias, channels);
    f.statistics = vector(statistics, count * channels);
    f.rows = 4 + count;
    lay_out();
  }

  const T* data(const Tensor& t, int64_t size) {
    TORCH_CHECK(t.scalar_type() == c10::CppTypeToScalarType<T>::value && t.numel() == size,
                "a tensor of the formula has a wrong dtype or shape ", t.sizes());
    kept.push_back(t);
    return t.const_data_ptr<T>();
  }
  const T* vector(Parameter t, int64_t size) {
    return t ? data(t->contiguous(), size) : nullptr;
  }

  // How many channels a unit has, and where its results are in the scratch memory.
  void lay_out() {
    Formula<T>& f = formula;
    int64_t together = 1;
    for (const Step& s : steps) {
      if (s.op < MEAN) continue;
      if (s.b == SAMPLE) together = f.channels;
      if (s.b == GROUP) together = std::max(together, f.group_channels);
    }
    int64_t least = together;
    while (f.channels_last && least % LANES && least < f.channels) least += together;
    least = std::min(least, f.channels);
    f.unit_channels = std::clamp(UNIT / f.pixels / least * least, least, f.channels);
    f.units_per_sample = (f.channels + f.unit_channels - 1) / f.unit_channels;
    const auto padded = [](int64_t n) { return (n + LANES - 1) / LANES * LANES + APART; };
    f.padded = padded(f.unit_channels * f.pixels);
    f.padded_channels = padded(f.unit_channels);
    int64_t at = 0;
    const auto take = [&](bool full) {
      const int64_t begin = at;
      at += full ? f.padded : f.padded_channels;
      return begin;
    };
    for (Step& s : steps) {
      s.value = take(s.full);
      s.gradient = take(s.full);
      s.mean = s.op >= MEAN ? take(false) : s.value;
    }
    f.spare = at;
    f.steps = steps.data();
    f.count = steps.size();
  }

  void run(void (*kernel)(const Formula<T>&, T*, int64_t, int64_t)) const {
    const Formula<T>& f = formula;
    const int64_t units = f.batch * f.units_per_sample;
    const int64_t rows = std::max(f.unit_channels, std::max(WIDE, f.pixels));
    const int64_t size = f.spare + f.padded_channels + 3 * (rows + LANES);
    const int64_t grain = std::max<int64_t>(GRAIN / (f.unit_channels * f.pixels), 1);
    at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
      Tensor scratch = at::empty({size}, kept[0].options());
      kernel(f, scratch.data_ptr<T>(), begin, end);
    });
  }

  Tensor like_x() const {
    return at::empty(kept[0].sizes(), kept[0].options().memory_format(format));
  }
};

template <typename F>
auto by_type(const Tensor& x, F f) {
  if (x.scalar_type() == at::kDouble) return f(double());
  return f(float());
}

Tensor forward(const Tensor& x, Parameter v0, Parameter v1, Parameter weight, Parameter bias,
               Parameter statistics, at::IntArrayRef program, at::ArrayRef<double> numbers,
               int64_t groups, double eps) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    Work<T> work(x, v0, v1, weight, bias, statistics, program, numbers, groups, eps);
    Tensor y = work.like_x();
    work.formula.out = y.data_ptr<T>();
    if (x.numel()) work.run(kernels<T>().forward);
    return y;
  });
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, Parameter v0, Parameter v1,
                                    Parameter weight, Parameter bias, Parameter statistics,
                                    at::IntArrayRef program, at::ArrayRef<double> numbers,
                                    int64_t groups, double eps) {
  return by_type(x, [&](auto t) {
    using T = decltype(t);
    Work<T> work(x, v0, v1, weight, bias, statistics, program, numbers, groups, eps);
    Formula<T>& f = work.formula;
    f.dy = work.data(dy.contiguous(work.format), x.numel());
    Tensor sums = at::zeros({f.batch, f.rows, f.channels}, x.options());
    Tensor dx = work.like_x();
    if (std::none_of(work.steps.begin(), work.steps.end(), [](const Step& s) { return s.op == X; })) {
      dx.zero_();
    }
    f.sums = sums.data_ptr<T>();
    f.out = dx.data_ptr<T>();
    if (x.numel()) work.run(kernels<T>().backward);
    return std::make_tuple(dx, sums.sum(0));  // sample after sample: however many threads there were
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(evonorm, CPU, m) {
  m.impl("formula_forward", forward);
  m.impl("formula_backward", backward);
}

}  // namespace evonorm
