// How the loops of cpu_kernels.cpp are run over a tensor, and where their sums and coefficients lie.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <memory>

#include "cpu_kernels.h"

namespace evonorm {

constexpr int64_t GRAIN = 32768;  // values that are worth a thread
constexpr int64_t AT_ONCE = 4096;  // values of a sample in a block, unless a group has more
constexpr int64_t CACHE = 1 << 19;  // bytes of a core's own

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

template <typename T> struct TorchType { using type = T; };
template <> struct TorchType<BFloat16> { using type = at::BFloat16; };
template <> struct TorchType<Half> { using type = at::Half; };

// Some channels of some samples.
struct Block {
  int64_t n_begin, n_end, c_begin, c_end;

  int64_t width() const { return c_end - c_begin; }
};

struct Moments {
  double mean = 0, variance = 0;
};

template <typename T> class Work;

// What forward and backward have in common.
template <typename T>
struct Problem {
  using A = typename Wide<T>::type;

  const Kind kind;
  const at::Tensor x;
  const bool whole;  // a B takes the variance of the batch itself, which ties its samples together
  const int64_t batch, channels, plane, groups;  // a statistic of a B is one channel's
  const int64_t of_group;  // channels
  const int number_of_sums, number_of_coefficients;
  const at::MemoryFormat format;
  Pass<T> reduced, pass;  // for the sums, and for what is then done with them

  // `by_group`: an S needs no sums of single channels.
  Problem(const at::Tensor& given, Kind kind_, bool whole_, int64_t groups_, bool by_group,
          int number_of_sums_, int number_of_coefficients_)
      : kind(kind_),
        x(given),
        whole(whole_),
        batch(x.size(0)),
        channels(x.size(1)),
        plane(x.size(2) * x.size(3)),
        groups(kind.batch ? channels : groups_),
        of_group(groups > 0 ? channels / groups : 0),
        number_of_sums(number_of_sums_),
        number_of_coefficients(number_of_coefficients_),
        format(x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast) {
    TORCH_CHECK(groups > 0 && channels % groups == 0,
                groups, " groups don't divide ", channels, " channels");
    // A 1x1 map is both, and as channels_last its vectors are full.
    const bool last = plane == 1 || format == at::MemoryFormat::ChannelsLast;
    pass = over(channels, plane, last);
    // The channels of a group are one long plane.
    reduced = by_group && !last ? over(groups, of_group * plane, last) : pass;
  }

  Pass<T> over(int64_t of_channels, int64_t of_plane, bool last) const {
    Pass<T> p{};
    const int64_t most = last ? std::max<int64_t>(65536 / of_channels, 1) : 16384;
    p.channels_last = last;
    p.batch = batch;
    p.channels = of_channels;
    p.plane = of_plane;
    p.pieces = std::max<int64_t>((of_plane + most - 1) / most, 1);
    p.piece = (of_plane + p.pieces - 1) / p.pieces;
    p.x = data(x);
    return p;
  }

  const T* data(const at::Tensor& t) const {
    return reinterpret_cast<const T*>(t.template const_data_ptr<typename TorchType<T>::type>());
  }

  // A tensor like x for the result.
  at::Tensor output() {
    at::Tensor out = at::empty(x.sizes(), x.options().memory_format(format));
    pass.out = reinterpret_cast<T*>(out.template data_ptr<typename TorchType<T>::type>());
    return out;
  }

  // For each block prepare() sets what coefficients `reduce` takes, finish() what else `map` does.
  template <typename Prepare, typename Finish>
  void run(Prepare prepare, Kernel<T> reduce, Finish finish, Kernel<T> map) const {
    const int64_t most = AT_ONCE / std::max<int64_t>(of_group * plane, 1);
    const int64_t width = of_group * std::clamp<int64_t>(most, 1, groups);
    const int64_t of_sample = (channels + width - 1) / width;
    const int64_t blocks = whole ? of_sample : batch * of_sample;
    const auto block = [&](int64_t k) {
      const int64_t n = whole ? 0 : k / of_sample, c = k % of_sample * width;
      return Block{n, whole ? batch : n + 1, c, std::min(c + width, channels)};
    };
    const auto in_parallel = [&](int64_t items, auto f) {
      const int64_t values = batch * channels * plane;
      at::parallel_for(0, items, std::max<int64_t>(GRAIN * items / std::max<int64_t>(values, 1), 1), f);
    };
    // From far apart, and too much to stay in the cache.
    const int64_t bytes = plane * sizeof(T);
    const bool scattered = whole && bytes < 4096 && batch * width * bytes > CACHE;
    if (!pass.channels_last && !scattered && blocks >= 2 * at::get_num_threads()) {
      // Block by block, as what was just read for the reduction is in the cache still.
      in_parallel(blocks, [&](int64_t begin, int64_t end) {
        Work<T> work(*this, (whole ? batch : 1) * width);
        for (int64_t k = begin; k < end; k++) {
          const Block b = work.area = block(k);
          prepare(work, b);
          for (int64_t n = b.n_begin; n < b.n_end; n++) work.run(reduce, reduced, n);
          finish(work, b);
          for (int64_t n = b.n_begin; n < b.n_end; n++) work.run(map, pass, n);
        }
      });
      return;
    }
    Work<T> work(*this, batch * channels);
    work.area = {0, batch, 0, channels};
    const auto on_blocks = [&](auto f) {
      in_parallel(blocks, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k++) f(work, block(k));
      });
    };
    const auto on_all = [&](Kernel<T> kernel, const Pass<T>& p) {
      const Pass<T> all = work.completed(p, 0);
      in_parallel((p.channels_last ? batch : batch * p.channels) * p.pieces,
                  [&](int64_t begin, int64_t end) { kernel(all, begin, end - begin); });
    };
    on_blocks(prepare);
    on_all(reduce, reduced);
    on_blocks(finish);
    on_all(map, pass);
  }
};

// The sums and coefficients of an area's planes, which are counted from its first.
template <typename T>
class Work {
 public:
  using A = typename Wide<T>::type;

  Block area{};

  Work(const Problem<T>& problem, int64_t planes)
      : p_(problem),
        planes_(planes),
        sums_(new double[planes / together(p_.reduced) * p_.reduced.pieces * p_.number_of_sums]),
        coefficients_(new A[planes * p_.number_of_coefficients]) {}

  A* coefficient(int k) { return coefficients_.get() + k * planes_; }

  // Of the B series: max(floor, v * x + s), max(floor, (x + 1) * s) or max(floor, s - x).
  void set_denominator(int64_t i, A v, A s, A floor) {
    coefficient(Batch::SLOPE)[i] = p_.kind.variant == '0' ? v : p_.kind.variant == '1' ? s : A(-1);
    coefficient(Batch::RISE)[i] = s;
    coefficient(Batch::FLOOR)[i] = floor;
  }

  // f(plane of the area, n, c)
  template <typename F>
  void each(const Block& b, F f) const {
    for (int64_t n = b.n_begin; n < b.n_end; n++) {
      const int64_t row = (n - area.n_begin) * area.width() - area.c_begin;
      for (int64_t c = b.c_begin; c < b.c_end; c++) f(row + c, n, c);
    }
  }

  // f(group n * groups + g, its planes), for a block of one sample
  template <typename F>
  void each_group(const Block& b, F f) const {
    for (int64_t c = b.c_begin; c < b.c_end; c += p_.of_group) {
      f(b.n_begin * p_.groups + c / p_.of_group, Block{b.n_begin, b.n_end, c, c + p_.of_group});
    }
  }

  // A pass with where its sums and coefficients lie, for sample n.
  Pass<T> completed(Pass<T> pass, int64_t n) {
    const int64_t row = (n - area.n_begin) * area.width();
    pass.origin = n * pass.channels + (area.c_begin - row) / together(pass);
    pass.sums = sums_.get();
    for (int k = 0; k < p_.number_of_coefficients; k++) pass.coefficients[k] = coefficient(k);
    return pass;
  }

  void run(Kernel<T> kernel, const Pass<T>& pass, int64_t n) {
    kernel(completed(pass, n), (n * pass.channels + area.c_begin / together(pass)) * pass.pieces,
           area.width() / together(pass) * pass.pieces);
  }

  Moments moments_of_plane(int64_t i) const {
    const Pass<T>& pass = p_.reduced;
    const double* part = sums_.get() + i * pass.pieces * MOMENTS;
    double mean = part[0], squares = part[1];
    for (int64_t k = 1, count = pass.piece; k < pass.pieces; k++) {
      part += MOMENTS;
      const int64_t more = std::min(pass.piece, pass.plane - k * pass.piece);
      const double delta = part[0] - mean, share = double(more) / (count + more);
      mean += delta * share;
      squares += part[1] + delta * delta * count * share;
      count += more;
    }
    return {mean, squares / pass.plane};
  }

  Moments moments_of_group(const Block& group) const {
    const int64_t joined = together(p_.reduced), count = p_.of_group / joined;
    const int64_t row = (group.n_begin - area.n_begin) * area.width();
    const int64_t first = (row + group.c_begin - area.c_begin) / joined;
    if (count == 1) return moments_of_plane(first);
    Moments total;  // of planes that all have the same size
    for (int64_t i = first; i < first + count; i++) total.mean += moments_of_plane(i).mean;
    total.mean /= count;
    for (int64_t i = first; i < first + count; i++) {
      const Moments m = moments_of_plane(i);
      total.variance += m.variance + (m.mean - total.mean) * (m.mean - total.mean);
    }
    total.variance /= count;
    return total;
  }

  template <int number>
  std::array<double, number> sums_of_plane(int64_t i) const {
    std::array<double, number> total{};
    const double* part = sums_.get() + i * p_.reduced.pieces * number;
    for (int64_t piece = 0; piece < p_.reduced.pieces; piece++, part += number) {
      for (int k = 0; k < number; k++) total[k] += part[k];
    }
    return total;
  }

 private:
  // Channels that are one long plane of a pass.
  int64_t together(const Pass<T>& pass) const { return p_.channels / pass.channels; }

  const Problem<T>& p_;
  int64_t planes_;
  std::unique_ptr<double[]> sums_;
  std::unique_ptr<A[]> coefficients_;
};

}  // namespace evonorm
