// The inner loop's updates: a whole list of parameters in one call.
#include "launch.h"

namespace fastmaml::cuda {
namespace {

using Tensors = std::vector<Tensor>;

struct Named {
  const char* name;
  const Tensors& tensors;
};

// The lists of an op and the memory order of each parameter. Outputs come in the order of the first
// list's tensors, or of the second's where the first is shared by all tasks (and so not fresh).
class Lists {
 public:
  Lists(const char* op, const Named& first, std::vector<Named> others) : call(op, first.name, first.tensors[0]), op_(op) {
    for (const Named& list : others) {
      STD_TORCH_CHECK(list.tensors.size() == first.tensors.size(), op, ": ", list.name, " has ", list.tensors.size(),
                      " tensors, ", first.name, " has ", first.tensors.size());
    }
    for (const Tensor& x : first.tensors) {
      STD_TORCH_CHECK(x.dim() >= 1, op, ": a tensor of ", first.name, " has no tasks dimension");
      sizes.push_back(sizes_of(x));
      orders.push_back(dense_order(x));
      InnerTensor t;
      t.tasks = x.size(0);
      t.size = elements_per_task(x);
      list.push_back(t);
    }
  }

  Input input(const char* name, const Tensors& tensors, size_t i) {
    return call.input(name, tensors[i], sizes[i], orders[i]);
  }

  // Rates have no tasks dimension: one element, or the shape of a parameter, or there are none.
  void rates(const Tensors& rate) {
    if (rate.empty()) return;
    STD_TORCH_CHECK(rate.size() == list.size(), op_, ": rate has ", rate.size(), " tensors, not ", list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      list[i].scalar_rate = rate[i].dim() == 0;
      if (list[i].scalar_rate) {
        call.check("rate", rate[i], call.type(), {});
        list[i].rate = rate[i].const_data_ptr();
      } else {
        const Tensor shared = stable::unsqueeze(rate[i], 0);  // in the memory order of its parameter
        Sizes shape = sizes[i];
        shape[0] = 1;
        list[i].rate = call.input("rate", shared, shape, orders[i]).data;
      }
    }
  }

  Tensor output(size_t i) { return call.empty(sizes[i], orders[i]); }

  Call call;
  std::vector<Sizes> sizes, orders;
  std::vector<InnerTensor> list;

 private:
  const char* op_;
};

Tensors update(Lists& lists, InnerRule rule, Tensors* velocities) {
  Tensors out;
  for (size_t i = 0; i < lists.list.size(); ++i) {
    out.push_back(lists.output(i));
    lists.list[i].out = pointer(out[i]);
    if (!velocities) continue;
    velocities->push_back(lists.output(i));
    lists.list[i].out_v = pointer(velocities->back());
  }
  const int64_t count = int64_t(lists.list.size());
  lists.call.done(launch_inner_update(lists.call.dtype(), lists.list.data(), count, rule, lists.call.stream()));
  return out;
}

Tensors inner_update(Tensors p, Tensors g, Tensors rate, double scale) {
  if (p.empty()) return {};
  Lists lists("inner_update", {"p", p}, {{"g", g}});
  for (size_t i = 0; i < p.size(); ++i) {
    lists.list[i].p = lists.input("p", p, i);
    lists.list[i].g = lists.input("g", g, i);
  }
  lists.rates(rate);
  return update(lists, {scale, 0, false, false}, nullptr);
}

Tensors inner_scale(Tensors g, Tensors rate, double scale) {
  if (g.empty()) return {};
  Lists lists("inner_scale", {"g", g}, {});
  for (size_t i = 0; i < g.size(); ++i) lists.list[i].g = lists.input("g", g, i);
  lists.rates(rate);
  return update(lists, {scale, 0, false, false}, nullptr);
}

std::tuple<Tensors, Tensors> inner_momentum(Tensors p, Tensors g, Tensors v, Tensors rate, double scale,
                                            double momentum, bool nesterov) {
  if (p.empty()) return {};
  Lists lists("inner_momentum", {"p", p}, {{"g", g}, {"v", v}});
  for (size_t i = 0; i < p.size(); ++i) {
    lists.list[i].p = lists.input("p", p, i);
    lists.list[i].g = lists.input("g", g, i);
    lists.list[i].v = lists.input("v", v, i);
  }
  lists.rates(rate);
  Tensors velocities;
  Tensors moved = update(lists, {scale, momentum, true, nesterov}, &velocities);
  return {moved, velocities};
}

Tensors inner_rate_grad(Tensors h, Tensors g, std::vector<bool> scalar, double scale) {
  if (h.empty()) return {};
  Lists lists("inner_rate_grad", {"h", h}, {{"g", g}});
  STD_TORCH_CHECK(scalar.size() == h.size(), "inner_rate_grad: scalar has ", scalar.size(), " entries, not ", h.size());
  Tensors kept, out;
  for (size_t i = 0; i < h.size(); ++i) {
    InnerTensor& t = lists.list[i];
    t.p = lists.input("h", h, i);
    t.g = lists.input("g", g, i);
    t.scalar_rate = scalar[i];
    Sizes sizes = lists.sizes[i];
    sizes[0] = 1;
    kept.push_back(scalar[i] ? lists.call.empty({}) : lists.call.empty(sizes, lists.orders[i]));
    out.push_back(scalar[i] ? kept[i] : stable::squeeze(kept[i], 0));
    t.out = pointer(kept[i]);
  }
  const int64_t count = int64_t(h.size());
  void* partial = lists.call.workspace(inner_rate_partials(lists.list.data(), count));
  const Dtype dtype = lists.call.dtype();
  lists.call.done(launch_inner_rate_grad(dtype, lists.list.data(), count, scale, partial, lists.call.stream()));
  return out;
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("inner_update", TORCH_BOX(&fastmaml::cuda::inner_update));
  m.impl("inner_scale", TORCH_BOX(&fastmaml::cuda::inner_scale));
  m.impl("inner_rate_grad", TORCH_BOX(&fastmaml::cuda::inner_rate_grad));
  m.impl("inner_momentum", TORCH_BOX(&fastmaml::cuda::inner_momentum));
}
