// The operators on a CPU: what the loops of cpu_kernels.cpp need is worked out here, and their sums
// are turned into statistics and gradients. The formulas are explained in reference.py.
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <vector>

#include "cpu_work.h"

namespace evonorm {
namespace {

using at::Tensor;
using std::optional;

constexpr double LOG2_E = 1.44269504088896340736;

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
  const bool whole = kind.batch && !var_;
  Problem<T> p(x, kind, whole, groups, !kind.batch, MOMENTS,
               kind.batch ? int(Batch::FORWARD) : int(Sample::FORWARD));
  const int64_t N = p.batch, C = p.channels;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight"),
      bias(bias_, x, 0, "bias");
  const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
  Tensor y = p.output(), stats = at::empty({2, N, p.groups}, options);
  Tensor batch_stats = at::empty({2, whole ? C : 0}, options);
  if (whole && x.numel() == 0) batch_stats.zero_();
  A* mean = stats.template data_ptr<A>();
  A* scale = mean + N * p.groups;
  A* of_batch = batch_stats.template data_ptr<A>();
  const auto scale_of = [&](const Moments& m) {
    return std::sqrt(m.variance + (kind.centred ? 0 : m.mean * m.mean) + eps);
  };

  const auto finish_sample = [&](Work<T>& work, const Block& b) {
    work.each_group(b, [&](int64_t u, const Block& group) {
      const Moments m = work.moments_of_group(group);
      mean[u] = m.mean;
      scale[u] = scale_of(m);
      const A factor = 1 / scale[u];
      work.each(group, [&](int64_t i, int64_t n, int64_t c) {
        work.coefficient(Sample::RATE)[i] = A(-LOG2_E) * v(n, c);
        work.coefficient(Sample::A)[i] = weight(n, c) * factor;
        work.coefficient(Sample::B)[i] = bias(n, c);
      });
    });
  };

  const auto finish_batch = [&](Work<T>& work, const Block& b) {
    std::vector<double> means(b.width()), variances(b.width());
    if (whole) {
      work.each(b, [&](int64_t i, int64_t, int64_t c) {
        means[c - b.c_begin] += work.moments_of_plane(i).mean / N;
      });
      work.each(b, [&](int64_t i, int64_t, int64_t c) {
        const Moments m = work.moments_of_plane(i);
        const double delta = m.mean - means[c - b.c_begin];
        variances[c - b.c_begin] += (m.variance + delta * delta) / N;
      });
      std::copy(means.begin(), means.end(), of_batch + b.c_begin);
      std::copy(variances.begin(), variances.end(), of_batch + C + b.c_begin);
    }
    std::vector<A> floors(b.width());
    for (int64_t k = 0; k < b.width(); k++) {
      floors[k] = std::sqrt((whole ? variances[k] : var(0, b.c_begin + k)) + eps);
    }
    work.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const Moments m = work.moments_of_plane(i);
      mean[n * C + c] = m.mean;
      scale[n * C + c] = scale_of(m);
      work.set_denominator(i, v(n, c), scale[n * C + c], floors[c - b.c_begin]);
      work.coefficient(Batch::A)[i] = weight(n, c);
      work.coefficient(Batch::B)[i] = bias(n, c);
    });
  };

  if (x.numel() == 0) return {y, stats, batch_stats};
  const Kernels<T>& k = kernels<T>();
  const auto nothing = [](Work<T>&, const Block&) {};
  if (kind.batch) {
    p.run(nothing, k.moments, finish_batch, k.batch_forward);
  } else {
    p.run(nothing, k.moments, finish_sample, k.sample_forward);
  }
  return {y, stats, batch_stats};
}

// A gradient (N, C) as one of a parameter: summed over the samples for (C,), nothing for None.
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
  const bool whole = kind.batch && !var_;
  Problem<T> p(x, kind, whole, groups, false, kind.batch ? int(Batch::SUMS) : int(Sample::SUMS),
               kind.batch ? int(Batch::BACKWARD) : int(Sample::BACKWARD));
  const int64_t N = p.batch, C = p.channels;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight");
  TORCH_CHECK(stats.is_contiguous() && stats.numel() == 2 * N * p.groups &&
              batch_stats.is_contiguous() && batch_stats.numel() == (whole ? 2 * C : 0),
              "stats and batch_stats should be those of the forward pass");
  p.reduced.dy = p.pass.dy = p.data(dy);
  Tensor dx = p.output();
  const A* mean = stats.template const_data_ptr<A>();
  const A* scale = mean + N * p.groups;
  const A* of_batch = batch_stats.template const_data_ptr<A>();
  // Of each sample and channel.
  std::unique_ptr<A[]> gradients(new A[4 * N * C]);
  A *dv = gradients.get(), *dvar = dv + N * C, *dweight = dvar + N * C, *dbias = dweight + N * C;

  const auto prepare_sample = [&](Work<T>& work, const Block& b) {
    work.each_group(b, [&](int64_t u, const Block& group) {
      const A factor = 1 / scale[u];
      work.each(group, [&](int64_t i, int64_t n, int64_t c) {
        work.coefficient(Sample::RATE)[i] = A(-LOG2_E) * v(n, c);
        work.coefficient(Sample::A)[i] = weight(n, c) * factor;
      });
    });
  };

  const auto finish_sample = [&](Work<T>& work, const Block& b) {
    work.each_group(b, [&](int64_t u, const Block& group) {
      const double centre = mean[u], r = 1. / scale[u];
      double along = 0;  // dy * num * weight, summed over the group
      work.each(group, [&](int64_t i, int64_t n, int64_t c) {
        const auto sums = work.template sums_of_plane<Sample::SUMS>(i);
        const double w = weight(n, c);
        along += w * sums[Sample::BY_SCALE];
        dv[n * C + c] = w * r * sums[Sample::BY_V];
        dweight[n * C + c] = sums[Sample::BY_SCALE] * r;
        dbias[n * C + c] = sums[Sample::BY_BIAS];
      });
      const double slope = -along * r * r * r / (p.of_group * p.plane);
      work.each(group, [&](int64_t i, int64_t, int64_t) {
        work.coefficient(Sample::CENTRE)[i] = centre;
        work.coefficient(Sample::P)[i] = slope;
        work.coefficient(Sample::Q)[i] = kind.centred ? 0 : slope * centre;
      });
    });
  };

  const auto prepare_batch = [&](Work<T>& work, const Block& b) {
    work.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const double of_channel = whole ? of_batch[C + c] : var(0, c);
      work.set_denominator(i, v(n, c), scale[n * C + c], std::sqrt(of_channel + eps));
      work.coefficient(Batch::A)[i] = weight(n, c);
    });
  };

  const auto finish_batch = [&](Work<T>& work, const Block& b) {
    std::vector<double> by_var(b.width());
    work.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const auto sums = work.template sums_of_plane<Batch::SUMS>(i);
      const int64_t at = n * C + c;
      const double w = weight(n, c), of_floor = -w * sums[Batch::BY_FLOOR];
      double by_scale = -w * sums[Batch::BY_RISE];
      if (kind.variant == '1') by_scale -= w * sums[Batch::BY_SLOPE];
      const double slope = by_scale / (double(scale[at]) * p.plane);
      const double d_var = of_floor / (2 * work.coefficient(Batch::FLOOR)[i]);
      dv[at] = -w * sums[Batch::BY_SLOPE];
      dvar[at] = d_var;
      dweight[at] = sums[Batch::BY_SCALE];
      dbias[at] = sums[Batch::BY_BIAS];
      by_var[c - b.c_begin] += d_var;
      work.coefficient(Batch::CENTRE)[i] = mean[at];
      work.coefficient(Batch::P)[i] = slope;
      work.coefficient(Batch::Q)[i] = kind.centred ? 0 : slope * mean[at];
    });
    if (!whole) return;
    work.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const double slope = 2 * by_var[c - b.c_begin] / (N * p.plane);
      work.coefficient(Batch::P)[i] += slope;
      work.coefficient(Batch::Q)[i] += slope * (mean[n * C + c] - of_batch[c]);
    });
  };

  const Kernels<T>& k = kernels<T>();
  if (x.numel() == 0) {
    std::fill(dv, dv + 4 * N * C, A(0));
  } else if (kind.batch) {
    p.run(prepare_batch, k.batch_sums, finish_batch, k.batch_backward);
  } else {
    p.run(prepare_sample, k.sample_sums, finish_sample, k.sample_backward);
  }
  return {dx, gradient<A>(dv, v_, N, C), gradient<A>(dvar, var_, N, C),
          gradient<A>(dweight, weight_, N, C), gradient<A>(dbias, bias_, N, C)};
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
