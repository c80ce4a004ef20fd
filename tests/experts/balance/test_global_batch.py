"""The global-batch loss against a loop, over accumulation steps, and over two processes."""

import multiprocessing

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.balance.global_batch import Buffer, Config, global_batch
from mixwell.experts.balance.switch import Config as SwitchConfig
from mixwell.experts.balance.switch import switch
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def micro_batches(count=3):
    generator = torch.Generator().manual_seed(5)
    return [route(torch.randn(6, 4, generator=generator, dtype=torch.float64), TopKConfig(k=2)) for _ in range(count)]


def loop(routings, last):
    """N sum f P with f counted over all routings and P over the last."""
    slots = [e for r in routings for row in r.indices_TK.tolist() for e in row]
    scores = last.scores_TE.tolist()
    return 4 * sum(slots.count(e) / len(slots) * sum(row[e] for row in scores) / len(scores) for e in range(4))


def test_agrees_with_a_loop_over_accumulation_steps():
    buffer, seen = Buffer(), []
    for routing in micro_batches():
        seen.append(routing)
        found = global_batch(routing, Config(), Context(step=7), buffer)
        assert abs(found.item() - loop(seen, routing)) < 1e-12


def test_the_buffer_starts_anew_with_the_next_step():
    buffer, (first, second, _) = Buffer(), micro_batches()
    global_batch(first, Config(), Context(step=0), buffer)
    found = global_batch(second, Config(), Context(step=1), buffer)
    torch.testing.assert_close(found, switch(second, SwitchConfig(), Context()))


def test_equals_the_switch_loss_where_the_micro_batch_is_the_global_batch():
    for routing in micro_batches():
        torch.testing.assert_close(global_batch(routing, Config(), Context()),
                                   switch(routing, SwitchConfig(), Context()))


def test_allows_a_pure_micro_batch_where_the_corpus_is_balanced():
    """Four domains, each to an expert of its own: no pressure at the end of the batch, where Switch presses fully."""
    buffer = Buffer()
    for expert in range(4):
        logits = 20.0 * torch.nn.functional.one_hot(torch.full((6,), expert), 4).double()
        routing = route(logits, TopKConfig(k=1))
        last = global_batch(routing, Config(), Context(), buffer)
    torch.testing.assert_close(last.item(), 1.0)
    assert switch(routing, SwitchConfig(), Context()) > 3.99


def test_gradient_uses_the_buffered_load():
    first, second, _ = micro_batches()
    logits = second.logits_TE.requires_grad_()

    def loss(h):
        buffer = Buffer()
        global_batch(first, Config(), Context(), buffer)
        return global_batch(route(h, TopKConfig(k=2)), Config(), Context(), buffer)

    assert torch.autograd.gradcheck(loss, (logits,))


def worker(rank, path, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    routing = micro_batches()[rank]
    queue.put((rank, global_batch(routing, Config(), Context()).item(),
               global_batch(routing, Config(across_ranks=False), Context()).item()))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_equal_one(tmp_path):
    context = multiprocessing.get_context("fork")  # torch is imported already: no process starts from nothing
    queue = context.Queue()
    workers = [context.Process(target=worker, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for process in workers:
        process.start()
    found = sorted(queue.get(timeout=600) for _ in workers)
    for process in workers:
        process.join(timeout=600)
    routings = micro_batches()[:2]
    for rank, across, alone in found:
        assert abs(across - loop(routings, routings[rank])) < 1e-12
        assert abs(alone - loop([routings[rank]], routings[rank])) < 1e-12
