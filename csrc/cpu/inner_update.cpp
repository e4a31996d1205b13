// The inner loop's steps over whole lists of parameters, and their derivatives: one parallel region
// over blocks of all tensors of all tasks.
//
// Every op here is elementwise over [T, *shape] with a rate that has no task dimension. A parameter's
// tensors are brought into the memory order of its gradient (convolution weight gradients are not
// row-major), so what is shared by all tasks is converted once and the rest not at all.
#include "kernel_table.h"
#include "simd.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

using Tensors = std::vector<Tensor>;
constexpr int64_t kBlock = 8192;

// out = p + rate g; p may be missing (0), rate one number or one per element.
template <class S>
FM_CLONES void step(const S* p, const S* g, const S* rates, S rate, S scale, S* out, int64_t n) {
  if (p && rates) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = p[i] + scale * rates[i] * g[i];
  } else if (p) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = p[i] + scale * rate * g[i];
  } else if (rates) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = scale * rates[i] * g[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = scale * rate * g[i];
  }
}

// v' = momentum v + g, and the direction of the step: v', or g + momentum v' (Nesterov).
template <class S>
FM_CLONES void momentum_step(const S* v, const S* g, S momentum, bool nesterov, S* velocity, S* direction,
                             int64_t n) {
  const S keep = nesterov ? momentum : S(1), add = nesterov ? S(1) : S(0);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    velocity[i] = momentum * v[i] + g[i];
    direction[i] = keep * velocity[i] + add * g[i];
  }
}

template <class S>
FM_CLONES void add_product(const S* h, const S* g, S* sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += h[i] * g[i];
}

template <class S>
FM_CLONES double product_sum(const S* h, const S* g, int64_t n) {
  double total = 0;
  for (int64_t from = 0; from < n; from += 1024) {
    const int64_t to = std::min<int64_t>(n, from + 1024);
    S sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = from; i < to; ++i) sum += h[i] * g[i];
    total += static_cast<double>(sum);
  }
  return total;
}

std::string item(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void check_list(const char* op, const char* name, const Tensors& list, const Tensors& like) {
  STD_TORCH_CHECK(list.size() == like.size(), op, ": ", name, " has ", list.size(), " tensors, g has ",
                  like.size());
  for (size_t i = 0; i < list.size(); ++i) {
    check_tensor(op, item(name, i).c_str(), list[i], like[i].scalar_type(), sizes_of(like[i]));
  }
}

void check_gradients(const char* op, const Tensors& g) {
  for (size_t i = 0; i < g.size(); ++i) {
    check_floating(op, item("g", i).c_str(), g[i]);
    check_least_rank(op, item("g", i).c_str(), g[i], 1);
  }
}

void check_rates(const char* op, const Tensors& rate, const Tensors& g) {
  STD_TORCH_CHECK(rate.empty() || rate.size() == g.size(), op, ": rate has ", rate.size(),
                  " tensors; it must have none, or one for each of the ", g.size(), " of g");
  for (size_t i = 0; i < rate.size(); ++i) {
    Sizes sizes = sizes_of(g[i]);
    sizes.erase(sizes.begin());
    if (rate[i].dim() == 0) sizes.clear();
    check_tensor(op, item("rate", i).c_str(), rate[i], g[i].scalar_type(), sizes);
  }
}

// One parameter of the list: its tensors in one memory order, as untyped pointers and strides.
struct Parameter {
  int64_t tasks, elements, first_block, blocks;
  bool wide;  // double
  Sizes order;
  std::vector<Tensor> keep;

  explicit Parameter(const Tensor& g)
      : tasks(g.size(0)),
        elements(elements_per_task(g)),
        first_block(0),
        blocks(divide_up(elements, kBlock)),
        wide(g.scalar_type() == ScalarType::Double),
        order(dense_order(g)) {}

  Tensor input(const Tensor& x) {
    keep.push_back(in_order(x, order));
    return keep.back();
  }
};

// A tensor of a parameter as a kernel reads or writes it: at<S>(t, from).
struct Span {
  char* data = nullptr;
  int64_t stride = 0;

  Span() = default;
  explicit Span(const Tensor& x)
      : data(static_cast<char*>(const_cast<void*>(x.const_data_ptr()))), stride(task_stride(x)) {}

  template <class S>
  S* at(int64_t t, int64_t from) const {
    return data ? reinterpret_cast<S*>(data) + t * stride + from : nullptr;
  }
};

// A learned rate: one number or one per element of a task; 1 where there is none.
struct Rate {
  Span each;
  double one = 1;

  Rate() = default;
  Rate(const Tensor& rate, Parameter& parameter) {
    if (rate.dim() == 0) {
      one = parameter.wide ? *static_cast<const double*>(rate.const_data_ptr())
                           : static_cast<double>(*static_cast<const float*>(rate.const_data_ptr()));
    } else {
      Tensor leading = stable::unsqueeze(rate, 0);
      each = Span(parameter.input(leading));
    }
  }
};

// f(S{}, parameter index, task, from, count) over all blocks of all tasks of all parameters.
template <class F>
void for_blocks(std::vector<Parameter>& parameters, bool over_tasks, const F& f) {
  int64_t total = 0, elements = 0;
  for (Parameter& p : parameters) {
    const int64_t tasks = over_tasks ? p.tasks : 1;
    p.first_block = total;
    total += tasks * p.blocks;
    elements += p.tasks * p.elements;
  }
  if (total == 0) return;
  parallel(total, elements / total, [&](int64_t begin, int64_t end) {
    size_t i = 0;
    for (int64_t block = begin; block < end; ++block) {
      while (i + 1 < parameters.size() && parameters[i + 1].first_block <= block) ++i;
      const Parameter& p = parameters[i];
      const int64_t local = block - p.first_block, from = local % p.blocks * kBlock;
      const int64_t count = std::min(kBlock, p.elements - from);
      if (p.wide) f(double{}, i, local / p.blocks, from, count);
      else f(float{}, i, local / p.blocks, from, count);
    }
  });
}

Tensors update(const Tensors* p, const Tensors& g, const Tensors& rate, double scale) {
  std::vector<Parameter> parameters(g.begin(), g.end());
  std::vector<Span> ps(g.size()), gs, outs;
  std::vector<Rate> rates(g.size());
  Tensors result;
  for (size_t i = 0; i < g.size(); ++i) {
    Parameter& parameter = parameters[i];
    if (p) ps[i] = Span(parameter.input((*p)[i]));
    gs.emplace_back(parameter.input(g[i]));
    if (!rate.empty()) rates[i] = Rate(rate[i], parameter);
    result.push_back(empty_in_order(sizes_of(g[i]), parameter.order, shim_dtype(g[i])));
    outs.emplace_back(result.back());
  }
  for_blocks(parameters, true, [&](auto zero, size_t i, int64_t t, int64_t from, int64_t count) {
    using S = decltype(zero);
    step<S>(ps[i].at<S>(t, from), gs[i].at<S>(t, from), rates[i].each.at<S>(t, from),
            static_cast<S>(rates[i].one), static_cast<S>(scale), outs[i].at<S>(t, from), count);
  });
  return result;
}

Tensors inner_update(const Tensors& p, const Tensors& g, const Tensors& rate, double scale) {
  check_gradients("inner_update", g);
  check_list("inner_update", "p", p, g);
  check_rates("inner_update", rate, g);
  return update(&p, g, rate, scale);
}

Tensors inner_scale(const Tensors& g, const Tensors& rate, double scale) {
  check_gradients("inner_scale", g);
  check_rates("inner_scale", rate, g);
  return update(nullptr, g, rate, scale);
}

Tensors inner_rate_grad(const Tensors& h, const Tensors& g, const std::vector<bool>& scalar,
                        double scale) {
  const char* op = "inner_rate_grad";
  check_gradients(op, g);
  check_list(op, "h", h, g);
  STD_TORCH_CHECK(scalar.size() == g.size(), op, ": scalar has ", scalar.size(), " entries, g has ",
                  g.size(), " tensors");
  std::vector<Parameter> parameters(g.begin(), g.end());
  std::vector<Span> hs, gs, outs;
  std::vector<std::vector<double>> parts(g.size());  // of the scalar ones, one for each block
  Tensors result;
  for (size_t i = 0; i < g.size(); ++i) {
    Parameter& parameter = parameters[i];
    hs.emplace_back(parameter.input(h[i]));
    gs.emplace_back(parameter.input(g[i]));
    Sizes sizes = sizes_of(g[i]), order = parameter.order;
    sizes[0] = 1;
    if (scalar[i]) sizes = {1}, order = {}, parts[i].resize(parameter.blocks);
    Tensor out = empty_in_order(sizes, order, shim_dtype(g[i]));
    outs.emplace_back(out);
    result.push_back(stable::select(out, 0, 0));
  }
  for_blocks(parameters, false, [&](auto zero, size_t i, int64_t, int64_t from, int64_t count) {
    using S = decltype(zero);
    const int64_t tasks = parameters[i].tasks;
    if (scalar[i]) {
      double sum = 0;
      for (int64_t t = 0; t < tasks; ++t) {
        sum += product_sum<S>(hs[i].at<S>(t, from), gs[i].at<S>(t, from), count);
      }
      parts[i][from / kBlock] = sum;
    } else {
      S* out = outs[i].at<S>(0, from);
      std::fill_n(out, count, S(0));
      for (int64_t t = 0; t < tasks; ++t) {
        add_product<S>(hs[i].at<S>(t, from), gs[i].at<S>(t, from), out, count);
      }
      for (int64_t k = 0; k < count; ++k) out[k] *= static_cast<S>(scale);
    }
  });
  for (size_t i = 0; i < g.size(); ++i) {
    if (!scalar[i]) continue;
    double sum = 0;
    for (const double part : parts[i]) sum += part;
    if (parameters[i].wide) *outs[i].at<double>(0, 0) = scale * sum;
    else *outs[i].at<float>(0, 0) = static_cast<float>(scale * sum);
  }
  return result;
}

std::tuple<Tensors, Tensors> inner_momentum(const Tensors& p, const Tensors& g, const Tensors& v,
                                            const Tensors& rate, double scale, double momentum,
                                            bool nesterov) {
  const char* op = "inner_momentum";
  check_gradients(op, g);
  check_list(op, "p", p, g);
  check_list(op, "v", v, g);
  check_rates(op, rate, g);
  std::vector<Parameter> parameters(g.begin(), g.end());
  std::vector<Span> ps, gs, vs, moved, velocities;
  std::vector<Rate> rates(g.size());
  Tensors new_p, new_v;
  for (size_t i = 0; i < g.size(); ++i) {
    Parameter& parameter = parameters[i];
    ps.emplace_back(parameter.input(p[i]));
    gs.emplace_back(parameter.input(g[i]));
    vs.emplace_back(parameter.input(v[i]));
    if (!rate.empty()) rates[i] = Rate(rate[i], parameter);
    for (Tensors* list : {&new_p, &new_v}) {
      list->push_back(empty_in_order(sizes_of(g[i]), parameter.order, shim_dtype(g[i])));
    }
    moved.emplace_back(new_p.back());
    velocities.emplace_back(new_v.back());
  }
  for_blocks(parameters, true, [&](auto zero, size_t i, int64_t t, int64_t from, int64_t count) {
    using S = decltype(zero);
    S direction[kBlock];  // small enough for a thread's stack, and stays in its cache
    momentum_step<S>(vs[i].at<S>(t, from), gs[i].at<S>(t, from), static_cast<S>(momentum), nesterov,
                     velocities[i].at<S>(t, from), direction, count);
    step<S>(ps[i].at<S>(t, from), direction, rates[i].each.at<S>(t, from), static_cast<S>(rates[i].one),
            static_cast<S>(scale), moved[i].at<S>(t, from), count);
  });
  return {new_p, new_v};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, inner_update);
  FM_CPU_KERNEL(m, inner_scale);
  FM_CPU_KERNEL(m, inner_rate_grad);
  FM_CPU_KERNEL(m, inner_momentum);
}
