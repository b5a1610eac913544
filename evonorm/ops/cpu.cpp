// The operators on a CPU. This file works out the coefficients that the kernels of cpu_kernels.cpp
// take, and turns their sums into statistics and gradients. reference.py explains the formulas.
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu_work.h"

namespace evonorm {
namespace {

using at::Tensor;
using std::optional;

constexpr double LOG2_E = 1.44269504088896340736;

// A parameter of shape (C,) or (N, C), or a constant in the place of None.
template <typename A>
class Parameter {
 public:
  Parameter(const optional<Tensor>& given, const Tensor& x, double constant, const char* name) {
    if (!given) {
      constants_.assign(x.size(1), constant);
      values_ = constants_.data();
      return;
    }
    const bool per_sample = given->dim() == 2 && given->size(0) == x.size(0);
    TORCH_CHECK(
        (given->dim() == 1 || per_sample) && given->size(-1) == x.size(1), name,
        " should have the shape (", x.size(1), ",), or (N, C) for one per sample, not ",
        given->sizes());
    kept_ = given->to(c10::CppTypeToScalarType<A>::value).contiguous();
    values_ = kept_.template const_data_ptr<A>();
    step_ = per_sample ? x.size(1) : 0;
  }

  A operator()(int64_t n, int64_t c) const {
    const A value = values_[n * step_ + c];
    // Not any NaN: rounded to a bfloat16, one whose bits are all set would become 0.
    return std::isnan(value) ? std::numeric_limits<A>::quiet_NaN() : value;
  }

 private:
  Tensor kept_;
  std::vector<A> constants_;
  const A* values_;
  int64_t step_ = 0;
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

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward_as(
    const Tensor& x, const optional<Tensor>& v_, const optional<Tensor>& var_,
    const optional<Tensor>& weight_, const optional<Tensor>& bias_, int64_t groups, double eps,
    Kind kind) {
  using A = typename Wide<T>::type;
  const bool own_var = kind.series_b && !var_;
  Problem<T> problem(x, kind, own_var, groups, !kind.series_b, MOMENTS,
                     kind.series_b ? int(SeriesB::FORWARD) : int(SeriesS::FORWARD));
  const int64_t N = problem.batch, C = problem.channels;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight"),
      bias(bias_, x, 0, "bias");
  const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
  Tensor y = problem.output(), stats = at::empty({2, N, problem.groups}, options);
  Tensor batch_stats = at::empty({2, own_var ? C : 0}, options);
  if (own_var && x.numel() == 0) batch_stats.zero_();
  A* mean = stats.template data_ptr<A>();
  A* s = mean + N * problem.groups;
  A* of_batch = batch_stats.template data_ptr<A>();
  const auto s_of = [&](const Moments& m) {
    return std::sqrt(m.variance + (kind.centred ? 0 : m.mean * m.mean) + eps);
  };

  const auto finish_s = [&](Work<T>& work, const Slab& slab) {
    work.each_group(slab, [&](int64_t at, const Slab& group) {
      const Moments m = work.moments_of_group(group);
      mean[at] = m.mean;
      s[at] = s_of(m);
      const A inverse = 1 / s[at];
      A *const rate = work.coefficient(SeriesS::RATE), *const scale = work.coefficient(SeriesS::SCALE),
        *const shift = work.coefficient(SeriesS::BIAS);
      work.each_plane(group, [&](int64_t i, int64_t n, int64_t c) {
        rate[i] = A(-LOG2_E) * v(n, c);
        scale[i] = weight(n, c) * inverse;
        shift[i] = bias(n, c);
      });
    });
  };

  std::vector<A> floors(C);
  for (int64_t c = 0; c < C && !own_var; c++) floors[c] = std::sqrt(var(0, c) + eps);

  // The mean and variance of the batch, from those of the planes.
  const auto finish_batch = [&](Work<T>& work, const Slab& slab) {
    std::vector<double> means(slab.channels()), variances(slab.channels());
    work.each_plane(slab, [&](int64_t i, int64_t, int64_t c) {
      means[c - slab.c_begin] += work.moments_of_plane(i).mean / N;
    });
    work.each_plane(slab, [&](int64_t i, int64_t, int64_t c) {
      const Moments m = work.moments_of_plane(i);
      const double delta = m.mean - means[c - slab.c_begin];
      variances[c - slab.c_begin] += (m.variance + delta * delta) / N;
    });
    std::copy(means.begin(), means.end(), of_batch + slab.c_begin);
    std::copy(variances.begin(), variances.end(), of_batch + C + slab.c_begin);
    for (int64_t k = 0; k < slab.channels(); k++) {
      floors[slab.c_begin + k] = std::sqrt(variances[k] + eps);
    }
  };

  const auto finish_b = [&](Work<T>& work, const Slab& slab) {
    if (own_var) finish_batch(work, slab);
    A *const scale = work.coefficient(SeriesB::SCALE), *const shift = work.coefficient(SeriesB::BIAS);
    work.each_plane(slab, [&](int64_t i, int64_t n, int64_t c) {
      const Moments m = work.moments_of_plane(i);
      const A s_of_plane = s_of(m);
      mean[n * C + c] = m.mean;
      s[n * C + c] = s_of_plane;
      work.set_denominator(i, v(n, c), s_of_plane, floors[c]);
      scale[i] = weight(n, c);
      shift[i] = bias(n, c);
    });
  };

  if (x.numel() == 0) return {y, stats, batch_stats};
  const Kernels<T>& k = kernels<T>();
  const auto nothing = [](Work<T>&, const Slab&) {};
  if (kind.series_b) {
    problem.run(nothing, k.moments, finish_b, k.b_forward);
  } else {
    problem.run(nothing, k.moments, finish_s, k.s_forward);
  }
  return {y, stats, batch_stats};
}

// The gradient of a parameter from the gradients by sample and channel, `values` of shape (N, C).
// They are added up for a parameter of shape (C,). The result is empty for None.
template <typename A>
Tensor gradient(const A* values, const optional<Tensor>& parameter, int64_t n, int64_t c) {
  if (!parameter) return at::empty({0}, at::kFloat);
  Tensor total = at::empty(parameter->sizes(), c10::CppTypeToScalarType<A>::value);
  A* out = total.template data_ptr<A>();
  if (parameter->dim() == 2) {
    std::copy(values, values + n * c, out);
  } else {
    std::vector<double> sum(c);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t k = 0; k < c; k++) sum[k] += values[i * c + k];
    }
    std::copy(sum.begin(), sum.end(), out);
  }
  return total.to(parameter->scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_as(
    const Tensor& dy, const Tensor& x, const optional<Tensor>& v_, const optional<Tensor>& var_,
    const optional<Tensor>& weight_, const optional<Tensor>& bias_, const Tensor& stats,
    const Tensor& batch_stats, int64_t groups, double eps, Kind kind) {
  using A = typename Wide<T>::type;
  const bool own_var = kind.series_b && !var_;
  Problem<T> problem(x, kind, own_var, groups, false,
                     kind.series_b ? int(SeriesB::SUMS) : int(SeriesS::SUMS),
                     kind.series_b ? int(SeriesB::BACKWARD) : int(SeriesS::BACKWARD));
  const int64_t N = problem.batch, C = problem.channels;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight");
  TORCH_CHECK(stats.is_contiguous() && stats.numel() == 2 * N * problem.groups &&
              batch_stats.is_contiguous() && batch_stats.numel() == (own_var ? 2 * C : 0),
              "stats and batch_stats should be those of the forward pass");
  problem.reduce_pass.dy = problem.map_pass.dy = problem.data(dy);
  Tensor dx = problem.output();
  const A* mean = stats.template const_data_ptr<A>();
  const A* s = mean + N * problem.groups;
  const A* of_batch = batch_stats.template const_data_ptr<A>();
  // The gradients of v, var, weight and bias by sample and channel, (4, N, C).
  std::unique_ptr<A[]> gradients(new A[4 * N * C]);
  A *dv = gradients.get(), *dvar = dv + N * C, *dweight = dvar + N * C, *dbias = dweight + N * C;

  const auto prepare_s = [&](Work<T>& work, const Slab& slab) {
    work.each_group(slab, [&](int64_t at, const Slab& group) {
      const A inverse = 1 / s[at];
      work.each_plane(group, [&](int64_t i, int64_t n, int64_t c) {
        work.coefficient(SeriesS::RATE)[i] = A(-LOG2_E) * v(n, c);
        work.coefficient(SeriesS::SCALE)[i] = weight(n, c) * inverse;
      });
    });
  };

  const auto finish_s = [&](Work<T>& work, const Slab& slab) {
    work.each_group(slab, [&](int64_t at, const Slab& group) {
      const double centre = mean[at], inverse = 1. / s[at];
      double total = 0;  // of dy * num * weight over the group
      work.each_plane(group, [&](int64_t i, int64_t n, int64_t c) {
        const auto sums = work.template sums_of_plane<SeriesS::SUMS>(i);
        const double w = weight(n, c);
        total += w * sums[SeriesS::BY_SCALE];
        dv[n * C + c] = w * inverse * sums[SeriesS::BY_V];
        dweight[n * C + c] = sums[SeriesS::BY_SCALE] * inverse;
        dbias[n * C + c] = sums[SeriesS::BY_BIAS];
      });
      const double p = -total * inverse * inverse * inverse / (problem.group_channels * problem.plane_size);
      work.each_plane(group, [&](int64_t i, int64_t, int64_t) {
        work.coefficient(SeriesS::CENTRE)[i] = centre;
        work.coefficient(SeriesS::P)[i] = p;
        work.coefficient(SeriesS::Q)[i] = kind.centred ? 0 : p * centre;
      });
    });
  };

  const auto prepare_b = [&](Work<T>& work, const Slab& slab) {
    work.each_plane(slab, [&](int64_t i, int64_t n, int64_t c) {
      const double variance = own_var ? of_batch[C + c] : var(0, c);
      work.set_denominator(i, v(n, c), s[n * C + c], std::sqrt(variance + eps));
      work.coefficient(SeriesB::SCALE)[i] = weight(n, c);
    });
  };

  const auto finish_b = [&](Work<T>& work, const Slab& slab) {
    std::vector<double> by_var(slab.channels());
    work.each_plane(slab, [&](int64_t i, int64_t n, int64_t c) {
      const auto sums = work.template sums_of_plane<SeriesB::SUMS>(i);
      const int64_t at = n * C + c;
      const double w = weight(n, c), by_floor = -w * sums[SeriesB::BY_FLOOR];
      double by_s = -w * sums[SeriesB::BY_RISE];
      if (kind.variant == '1') by_s -= w * sums[SeriesB::BY_SLOPE];
      const double p = by_s / (double(s[at]) * problem.plane_size);
      const double d_var = by_floor / (2 * work.coefficient(SeriesB::FLOOR)[i]);
      dv[at] = -w * sums[SeriesB::BY_SLOPE];
      dvar[at] = d_var;
      dweight[at] = sums[SeriesB::BY_SCALE];
      dbias[at] = sums[SeriesB::BY_BIAS];
      by_var[c - slab.c_begin] += d_var;
      work.coefficient(SeriesB::CENTRE)[i] = mean[at];
      work.coefficient(SeriesB::P)[i] = p;
      work.coefficient(SeriesB::Q)[i] = kind.centred ? 0 : p * mean[at];
    });
    if (!own_var) return;
    work.each_plane(slab, [&](int64_t i, int64_t n, int64_t c) {
      const double p = 2 * by_var[c - slab.c_begin] / (N * problem.plane_size);
      work.coefficient(SeriesB::P)[i] += p;
      work.coefficient(SeriesB::Q)[i] += p * (mean[n * C + c] - of_batch[c]);
    });
  };

  const Kernels<T>& k = kernels<T>();
  if (x.numel() == 0) {
    std::fill(dv, dv + 4 * N * C, A(0));
  } else if (kind.series_b) {
    problem.run(prepare_b, k.b_sums, finish_b, k.b_backward);
  } else {
    problem.run(prepare_s, k.s_sums, finish_s, k.s_backward);
  }
  return {dx, gradient<A>(dv, v_, N, C), gradient<A>(dvar, var_, N, C),
          gradient<A>(dweight, weight_, N, C), gradient<A>(dbias, bias_, N, C)};
}

// x itself where it is contiguous or channels_last, else a contiguous copy.
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
  const auto format =
      in.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
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
