// The operators on a CPU: what the loops of cpu_kernels.cpp need is worked out here, and their sums
// are turned into statistics and gradients. The formulas are explained in reference.py.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "cpu_kernels.h"

namespace evonorm {
namespace {

using at::Tensor;
using std::optional;

constexpr int64_t GRAIN = 32768;  // values that are worth a thread

constexpr double LOG2_E = 1.44269504088896340736;

struct Kind {
  bool batch, centred;  // whether the statistics are deviations, or root mean squares
  char variant;

  explicit Kind(c10::string_view name) {
    TORCH_CHECK(
        name == "B0" || name == "B1" || name == "B2" || name == "S0" || name == "S1" || name == "S2",
        "kind should be one of B0, B1, B2, S0, S1 and S2, not ", name);
    batch = name[0] == 'B';
    variant = name[1];
    centred = batch ? variant == '0' : variant != '2';
  }
};

// A parameter (C,) or (N, C), or a constant in its place.
template <typename A>
class Parameter {
 public:
  Parameter(const optional<Tensor>& given, const Tensor& x, double otherwise, const char* name)
      : otherwise_(otherwise) {
    if (!given) return;
    const bool per_sample = given->dim() == 2 && given->size(0) == x.size(0);
    TORCH_CHECK(
        (given->dim() == 1 || per_sample) && given->size(-1) == x.size(1), name,
        " should have the shape (", x.size(1), ",), or (N, C) for one per sample, not ",
        given->sizes());
    kept_ = given->to(c10::CppTypeToScalarType<A>::value).contiguous();
    values_ = kept_.template const_data_ptr<A>();
    step_ = given->dim() == 2 ? x.size(1) : 0;
  }

  A operator()(int64_t n, int64_t c) const { return values_ ? values_[n * step_ + c] : otherwise_; }

 private:
  Tensor kept_;
  const A* values_ = nullptr;
  int64_t step_ = 0;
  A otherwise_;
};

// Planes n * C + c whose statistics depend on each other: some channels of a sample, or all samples
// of a channel.
struct Unit {
  int64_t n, c, first, count, step;
  bool of_channel;

  template <typename F>
  void each(F f) const {  // f(plane, its n, its c)
    for (int64_t k = 0, plane = first; k < count; k++, plane += step) {
      of_channel ? f(plane, n + k, c) : f(plane, n, c + k);
    }
  }
};

template <typename T>
const Kernels<T>& kernels() {
  static const std::string capability = at::get_cpu_capability();
#ifdef EVONORM_X86
  if (capability == "AVX512") return avx512<T>();
  if (capability == "AVX2") return avx2<T>();
#endif
  return baseline<T>();
}

template <typename T> struct TorchType { using type = T; };
template <> struct TorchType<BFloat16> { using type = at::BFloat16; };
template <> struct TorchType<Half> { using type = at::Half; };


// What forward and backward have in common.
template <typename T>
struct Problem {
  using A = typename Wide<T>::type;

  const Kind kind;
  const Tensor x;
  const int64_t batch, channels, plane, groups;  // a statistic of a B is one channel's
  const at::MemoryFormat format;
  Tensor sums, kept_coefficients;
  A* coefficients;
  Pass<T> pass{};

  Problem(const Tensor& given, Kind kind_, int64_t groups_, int number_of_sums, int number)
      : kind(kind_),
        x(given),
        batch(x.size(0)),
        channels(x.size(1)),
        plane(x.size(2) * x.size(3)),
        groups(kind.batch ? channels : groups_),
        format(x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast) {
    TORCH_CHECK(groups > 0 && channels % groups == 0, groups, " groups don't divide ", channels, " channels");
    // A 1x1 map is both, and as channels_last its vectors are full.
    pass.channels_last = plane == 1 || format == at::MemoryFormat::ChannelsLast;
    const int64_t most = pass.channels_last ? std::max<int64_t>(65536 / channels, 1) : 16384;
    pass.batch = batch;
    pass.channels = channels;
    pass.plane = plane;
    pass.pieces = std::max<int64_t>((plane + most - 1) / most, 1);
    pass.piece = (plane + pass.pieces - 1) / pass.pieces;
    const int64_t planes = batch * channels;
    sums = at::empty({planes * pass.pieces * number_of_sums}, at::kDouble);
    pass.sums = sums.template data_ptr<double>();
    kept_coefficients = at::empty({number, planes}, c10::CppTypeToScalarType<A>::value);
    coefficients = kept_coefficients.template data_ptr<A>();
    for (int k = 0; k < number; k++) pass.coefficients[k] = coefficient(k);
    pass.x = data(x);
  }

  A* coefficient(int k) { return coefficients + k * batch * channels; }

  // Of the B series: max(floor, v * x + s), max(floor, (x + 1) * s) or max(floor, s - x).
  void set_denominator(int64_t plane, A v, A s, A floor) {
    coefficient(Batch::SLOPE)[plane] = kind.variant == '0' ? v : kind.variant == '1' ? s : A(-1);
    coefficient(Batch::RISE)[plane] = s;
    coefficient(Batch::FLOOR)[plane] = floor;
  }

  const T* data(const Tensor& t) const {
    return reinterpret_cast<const T*>(t.template const_data_ptr<typename TorchType<T>::type>());
  }

  // A tensor like x for the result.
  Tensor output() {
    Tensor out = at::empty(x.sizes(), x.options().memory_format(format));
    pass.out = reinterpret_cast<T*>(out.template data_ptr<typename TorchType<T>::type>());
    return out;
  }

  // `whole`: a B takes the variance of the batch itself, which ties a channel's planes together.
  int64_t units(bool whole) const {
    return whole ? channels : batch * groups;
  }
  Unit unit(int64_t u, bool whole) const {
    if (whole) return {0, u, u, batch, channels, true};
    const int64_t width = channels / groups;
    return {u / groups, u % groups * width, u * width, width, 1, false};
  }

  // For each unit: prepare() sets what coefficients `reduce` takes, finish() what else `map` does.
  // Both get the number of the unit and the unit.
  template <typename Prepare, typename Finish>
  void run(bool whole, Prepare prepare, Kernel<T> reduce, Finish finish, Kernel<T> map) const {
    const int64_t number = units(whole), values = batch * channels * plane;
    const int64_t grain = std::max<int64_t>(GRAIN * number / std::max<int64_t>(values, 1), 1);
    const auto on = [&](Kernel<T> kernel, Unit u) {
      if (pass.pieces == 1) return kernel(pass, u.first, u.count, u.step);
      for (int64_t k = 0; k < u.count; k++) {
        kernel(pass, (u.first + k * u.step) * pass.pieces, pass.pieces, 1);
      }
    };
    const bool apart = whole && plane * sizeof(T) < 4096;  // strided access would be slow
    if (!pass.channels_last && !apart && number >= 2 * at::get_num_threads()) {
      // Unit by unit, as what was just read for the reduction is in the cache still.
      at::parallel_for(0, number, grain, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k++) {
          const Unit u = unit(k, whole);
          prepare(k, u);
          on(reduce, u);
          finish(k, u);
          on(map, u);
        }
      });
      return;
    }
    const int64_t items = (pass.channels_last ? batch : batch * channels) * pass.pieces;
    const auto on_all = [&](Kernel<T> kernel) {
      at::parallel_for(0, items, std::max<int64_t>(GRAIN * items / std::max<int64_t>(values, 1), 1),
                       [&](int64_t begin, int64_t end) { kernel(pass, begin, end - begin, 1); });
    };
    const auto on_units = [&](auto f) {
      at::parallel_for(0, number, grain, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k++) f(k, unit(k, whole));
      });
    };
    on_units(prepare);
    on_all(reduce);
    on_units(finish);
    on_all(map);
  }
};

struct Moments {
  double mean = 0, variance = 0;
};

template <typename T>
Moments moments_of_plane(const Pass<T>& pass, int64_t plane) {
  const double* part = pass.sums + plane * pass.pieces * MOMENTS;
  double count = std::min(pass.piece, pass.plane), mean = part[0], squares = part[1];
  for (int64_t k = 1; k < pass.pieces; k++) {
    part += MOMENTS;
    const double more = std::min(pass.piece, pass.plane - k * pass.piece);
    const double delta = part[0] - mean, share = more / (count + more);
    mean += delta * share;
    squares += part[1] + delta * delta * count * share;
    count += more;
  }
  return {mean, squares / count};
}

// Of planes together, which all have the same size.
template <typename T>
Moments moments_of_unit(const Pass<T>& pass, Unit unit) {
  Moments total;
  unit.each([&](int64_t i, int64_t, int64_t) { total.mean += moments_of_plane(pass, i).mean; });
  total.mean /= unit.count;
  unit.each([&](int64_t i, int64_t, int64_t) {
    const Moments m = moments_of_plane(pass, i);
    total.variance += m.variance + (m.mean - total.mean) * (m.mean - total.mean);
  });
  total.variance /= unit.count;
  return total;
}

template <int number, typename T>
std::array<double, number> sums_of_plane(const Pass<T>& pass, int64_t plane) {
  std::array<double, number> total{};
  const double* part = pass.sums + plane * pass.pieces * number;
  for (int64_t i = 0; i < pass.pieces; i++, part += number) {
    for (int k = 0; k < number; k++) total[k] += part[k];
  }
  return total;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward_as(
    const Tensor& x, const optional<Tensor>& v_, const optional<Tensor>& var_,
    const optional<Tensor>& weight_, const optional<Tensor>& bias_, int64_t groups, double eps,
    Kind kind) {
  using A = typename Wide<T>::type;
  Problem<T> p(x, kind, groups, MOMENTS, kind.batch ? int(Batch::FORWARD) : int(Sample::FORWARD));
  const int64_t C = p.channels;
  const bool whole = kind.batch && !var_;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight"),
      bias(bias_, x, 0, "bias");
  const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
  Tensor y = p.output(), stats = at::empty({2, p.batch, p.groups}, options);
  Tensor batch_stats = at::empty({2, whole ? C : 0}, options);
  if (whole && x.numel() == 0) batch_stats.zero_();
  A* mean = stats.template data_ptr<A>();
  A* scale = mean + p.batch * p.groups;
  A* of_batch = batch_stats.template data_ptr<A>();
  const auto scale_of = [&](const Moments& m) {
    return std::sqrt(m.variance + (kind.centred ? 0 : m.mean * m.mean) + eps);
  };

  const auto finish_sample = [&](int64_t u, Unit unit) {
    const Moments m = moments_of_unit(p.pass, unit);
    mean[u] = m.mean;
    scale[u] = scale_of(m);
    unit.each([&](int64_t i, int64_t n, int64_t c) {
      p.coefficient(Sample::RATE)[i] = -LOG2_E * v(n, c);
      p.coefficient(Sample::A)[i] = weight(n, c) / scale[u];
      p.coefficient(Sample::B)[i] = bias(n, c);
    });
  };

  const auto finish_batch = [&](int64_t, Unit unit) {
    double of_channel = var(0, unit.c);
    if (whole) {
      const Moments m = moments_of_unit(p.pass, unit);
      of_batch[unit.c] = m.mean;
      of_batch[C + unit.c] = of_channel = m.variance;
    }
    const double floor = std::sqrt(of_channel + eps);
    unit.each([&](int64_t i, int64_t n, int64_t c) {
      const Moments m = moments_of_plane(p.pass, i);
      mean[i] = m.mean;
      scale[i] = scale_of(m);
      p.set_denominator(i, v(n, c), scale[i], floor);
      p.coefficient(Batch::A)[i] = weight(n, c);
      p.coefficient(Batch::B)[i] = bias(n, c);
    });
  };

  if (x.numel() == 0) return {y, stats, batch_stats};
  const Kernels<T>& k = kernels<T>();
  const auto nothing = [](int64_t, Unit) {};
  if (kind.batch) {
    p.run(whole, nothing, k.moments, finish_batch, k.batch_forward);
  } else {
    p.run(whole, nothing, k.moments, finish_sample, k.sample_forward);
  }
  return {y, stats, batch_stats};
}

// A gradient (N, C) as one of a parameter: summed over the samples for (C,), nothing for None.
Tensor gradient(const double* values, const optional<Tensor>& parameter, int64_t n, int64_t c) {
  if (!parameter) return at::empty({0}, at::kFloat);
  Tensor total = at::empty(parameter->sizes(), at::kDouble);
  double* out = total.data_ptr<double>();
  if (parameter->dim() == 2) {
    std::copy(values, values + n * c, out);
  } else {
    std::fill(out, out + c, 0.);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t k = 0; k < c; k++) out[k] += values[i * c + k];
    }
  }
  return total.to(parameter->scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_as(
    const Tensor& dy, const Tensor& x, const optional<Tensor>& v_, const optional<Tensor>& var_,
    const optional<Tensor>& weight_, const optional<Tensor>& bias_, const Tensor& stats,
    const Tensor& batch_stats, int64_t groups, double eps, Kind kind) {
  using A = typename Wide<T>::type;
  Problem<T> p(x, kind, groups, kind.batch ? int(Batch::SUMS) : int(Sample::SUMS),
               kind.batch ? int(Batch::BACKWARD) : int(Sample::BACKWARD));
  const int64_t N = p.batch, C = p.channels;
  const bool whole = kind.batch && !var_;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight");
  TORCH_CHECK(stats.is_contiguous() && stats.numel() == 2 * N * p.groups &&
              batch_stats.is_contiguous() && batch_stats.numel() == (whole ? 2 * C : 0),
              "stats and batch_stats should be those of the forward pass");
  p.pass.dy = p.data(dy);
  Tensor dx = p.output();
  const A* mean = stats.template const_data_ptr<A>();
  const A* scale = mean + N * p.groups;
  const A* of_batch = batch_stats.template const_data_ptr<A>();
  // Of each sample and channel.
  Tensor gradients = at::empty({4, N, C}, at::kDouble);
  double *dv = gradients.data_ptr<double>(), *dvar = dv + N * C, *dweight = dvar + N * C,
         *dbias = dweight + N * C;

  const auto prepare_sample = [&](int64_t u, Unit unit) {
    unit.each([&](int64_t i, int64_t n, int64_t c) {
      p.coefficient(Sample::RATE)[i] = -LOG2_E * v(n, c);
      p.coefficient(Sample::A)[i] = weight(n, c) / scale[u];
    });
  };

  const auto finish_sample = [&](int64_t u, Unit unit) {
    const double r = 1. / scale[u];
    double along = 0;  // dy * num * weight, summed over the group
    unit.each([&](int64_t i, int64_t n, int64_t c) {
      const auto sums = sums_of_plane<Sample::SUMS>(p.pass, i);
      const double w = weight(n, c);
      along += w * sums[Sample::BY_SCALE];
      dv[i] = w * r * sums[Sample::BY_V];
      dweight[i] = sums[Sample::BY_SCALE] * r;
      dbias[i] = sums[Sample::BY_BIAS];
    });
    const double slope = -along * r * r * r / (unit.count * p.plane);
    unit.each([&](int64_t i, int64_t, int64_t) {
      p.coefficient(Sample::CENTRE)[i] = mean[u];
      p.coefficient(Sample::P)[i] = slope;
      p.coefficient(Sample::Q)[i] = kind.centred ? 0 : slope * mean[u];
    });
  };

  const auto prepare_batch = [&](int64_t, Unit unit) {
    const double of_channel = whole ? of_batch[C + unit.c] : var(0, unit.c);
    const double floor = std::sqrt(of_channel + eps);
    unit.each([&](int64_t i, int64_t n, int64_t c) {
      p.set_denominator(i, v(n, c), scale[i], floor);
      p.coefficient(Batch::A)[i] = weight(n, c);
    });
  };

  const auto finish_batch = [&](int64_t, Unit unit) {
    double by_var = 0;
    unit.each([&](int64_t i, int64_t n, int64_t c) {
      const auto sums = sums_of_plane<Batch::SUMS>(p.pass, i);
      const double w = weight(n, c);
      double by_scale = -w * sums[Batch::BY_RISE];
      if (kind.variant == '1') by_scale -= w * sums[Batch::BY_SLOPE];
      const double slope = by_scale / (double(scale[i]) * p.plane);
      dv[i] = -w * sums[Batch::BY_SLOPE];
      dvar[i] = -w * sums[Batch::BY_FLOOR] / (2 * p.coefficient(Batch::FLOOR)[i]);
      dweight[i] = sums[Batch::BY_SCALE];
      dbias[i] = sums[Batch::BY_BIAS];
      by_var += dvar[i];
      p.coefficient(Batch::CENTRE)[i] = mean[i];
      p.coefficient(Batch::P)[i] = slope;
      p.coefficient(Batch::Q)[i] = kind.centred ? 0 : slope * mean[i];
    });
    if (!whole) return;
    const double slope = 2 * by_var / (N * p.plane);
    unit.each([&](int64_t i, int64_t, int64_t c) {
      p.coefficient(Batch::P)[i] += slope;
      p.coefficient(Batch::Q)[i] += slope * (mean[i] - of_batch[c]);
    });
  };

  const Kernels<T>& k = kernels<T>();
  if (x.numel() == 0) {
    gradients.zero_();
  } else if (kind.batch) {
    p.run(whole, prepare_batch, k.batch_sums, finish_batch, k.batch_backward);
  } else {
    p.run(whole, prepare_sample, k.sample_sums, finish_sample, k.sample_backward);
  }
  return {dx, gradient(dv, v_, N, C), gradient(dvar, var_, N, C), gradient(dweight, weight_, N, C),
          gradient(dbias, bias_, N, C)};
}

// x as it is when contiguous or channels_last.
Tensor dense(const Tensor& x) {
  TORCH_CHECK(x.dim() == 4, "x should be (N, C, H, W), not of shape ", x.sizes());
  return x.contiguous(x.is_contiguous() ? at::MemoryFormat::Contiguous : x.suggest_memory_format());
}

template <typename F>
auto by_type(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case at::kFloat: return f(float());
    case at::kDouble: return f(double());
    case at::kBFloat16: return f(BFloat16());
    case at::kHalf: return f(Half());
    default: TORCH_CHECK_TYPE(false, "x should be floating-point, not ", x.scalar_type());
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& x, const optional<Tensor>& v, const optional<Tensor>& var,
    const optional<Tensor>& weight, const optional<Tensor>& bias, int64_t groups, double eps,
    c10::string_view kind) {
  return by_type(x, [&](auto t) {
    return forward_as<decltype(t)>(dense(x), v, var, weight, bias, groups, eps, Kind(kind));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, const optional<Tensor>& v, const optional<Tensor>& var,
    const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& stats,
    const Tensor& batch_stats, int64_t groups, double eps, c10::string_view kind) {
  const Tensor in = dense(x);
  const auto format = in.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  return by_type(in, [&](auto t) {
    return backward_as<decltype(t)>(dy.to(x.scalar_type()).contiguous(format), in, v, var, weight,
                                    bias, stats, batch_stats, groups, eps, Kind(kind));
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(evonorm, CPU, m) {
  m.impl("forward", forward);
  m.impl("backward", backward);
}

}  // namespace evonorm
