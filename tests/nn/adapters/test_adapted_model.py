"""flexkern.nn.attach_adapters: known families and given places; passes that share a trunk equal whole
passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flexkern.nn.adapters.adapted_model import AdaptedModel, AdapterPoint, Parts, attach_adapters
from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.adapters.passes import running

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
# Some hundred additions of values of order 1 in another order, through three blocks.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def model_of(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False)
    if family == "deit":
        return transformers.DeiTModel(transformers.DeiTConfig(**SIZES), add_pooling_layer=False)
    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))


def adapted(family: str = "vit", tasks: int = 2) -> AdaptedModel:
    model = model_of(family)
    bank = AdapterBank(SIZES["num_hidden_layers"], SIZES["hidden_size"], 4)
    for _ in range(tasks):
        bank.add_task()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return attach_adapters(model, bank).eval()


def class_token(model: AdaptedModel, images: Tensor, task: int | Tensor | None) -> Tensor:
    return model(images, task=task).last_hidden_state[:, 0]


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_passes_from_the_trunk_equal_whole_passes(family: str) -> None:
    model = adapted(family)
    images = torch.rand(3, 3, 16, 16)
    trunk = model.trunk(images)
    with torch.no_grad():
        for task in (None, 0, 1, torch.tensor([1, -1, 0])):
            torch.testing.assert_close(model.features(trunk, task), class_token(model, images, task), **CLOSE)
        assert not torch.allclose(model.features(trunk, 0), model.features(trunk, 1), atol=1e-2)


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_without_a_task_the_model_is_as_before(family: str) -> None:
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model_of(family).eval()(images).last_hidden_state
        model = adapted(family)
        assert torch.equal(model.model(images).last_hidden_state, before)
        assert torch.equal(model(images, task=torch.tensor([-1, -1])).last_hidden_state, before)
        model.remove()
        with model.tasks(0):
            assert torch.equal(model.model(images).last_hidden_state, before)
    assert not any(p.requires_grad for p in model.model.parameters())


def test_adapters_are_parallel_to_the_mlp() -> None:
    """Written out for one block, as EASE has it: x + MLP(norm(x)) + adapter(x), where x is what attention
    left."""
    model = adapted()
    images = torch.rand(2, 3, 16, 16)
    vit = model.model
    with torch.no_grad():
        tokens = vit.embeddings(images)
        for number, block in enumerate(vit.layers):
            attended, _ = block.attention(block.layernorm_before(tokens))
            x = attended + tokens
            rows = model.bank.rows[1]
            down, bias, up, up_bias = (rows.row(k, number) for k in ("down", "down_bias", "up", "up_bias"))
            adapter = model.bank.scale * (torch.relu(x @ down + bias) @ up + up_bias)
            tokens = x + block.mlp(block.layernorm_after(x)) + adapter
        expected = vit.layernorm(tokens)[:, 0]
        torch.testing.assert_close(class_token(model, images, 1), expected, **CLOSE)


def test_pairs_equal_their_own_passes() -> None:
    model = adapted(tasks=3)
    images = torch.rand(4, 3, 16, 16)
    trunk = model.trunk(images)
    task, sample = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([3, 1, 1, 0, 3])
    with torch.no_grad():
        pairs = model.features(trunk, task, sample)
        for row, (t, s) in enumerate(zip(task.tolist(), sample.tolist(), strict=True)):
            alone = class_token(model, images[s : s + 1], t)[0]
            torch.testing.assert_close(pairs[row], alone, **CLOSE)


def test_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where activations are large, a CPU takes a few pairs at a time."""
    model = adapted(tasks=3)
    images = torch.rand(5, 3, 16, 16)
    task, sample = torch.tensor([-1, 0, 0, 1, 1, 2, 2]), torch.tensor([4, 0, 3, 1, 2, 4, 0])
    sizes: list[int] = []
    list(model.model.modules())[-1].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))

    def run() -> list[Tensor]:
        with torch.no_grad():
            trunk = model.trunk(images)
            return [*trunk, model.features(trunk, task, sample), model.features(trunk, 1, mean=True)]

    whole = run()
    assert max(sizes) == 7
    sizes.clear()
    an_image = 4 * whole[0][0].numel() * 4  # the MLP's activation: four times as wide, float32
    monkeypatch.setattr("flexkern.nn.adapters.adapted_model._PIECE_BYTES", 2 * an_image)
    pieces = run()
    assert max(sizes) == 2
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_as_many_tasks_as_pairs() -> None:
    model = adapted()
    trunk = model.trunk(torch.rand(3, 3, 16, 16))
    for sample in (None, torch.tensor([0, 1, 1])):
        with torch.no_grad(), pytest.raises(ValueError, match="task must have one entry for each of 3 pairs"):
            model.features(trunk, torch.tensor([0, 0, 1, 1]), sample)


def test_gradients_equal_those_of_whole_passes() -> None:
    model = adapted()
    images = torch.rand(3, 3, 16, 16)
    parameters = model.bank.parameters_of(1)
    grads = []
    for whole in (True, False):
        model.zero_grad()
        out = class_token(model, images, 1) if whole else model.features(model.trunk(images), 1)
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in parameters])
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
    assert all(p.grad is None for p in model.bank.parameters_of(0))


def test_keeps_no_activations() -> None:
    model = adapted()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        with model.tasks(0):
            model.features(model.trunk(images), 1)
            model(images, task=0)
            model.model(images)
            current = running.get()
            assert current is not None
            assert not current.inputs
        model.model(images)
    assert running.get() is None
    assert not model._log.again
    assert not model._log.passes


def test_only_adapters_are_in_training() -> None:
    model = adapted().train()
    assert model.bank.training
    assert not any(m.training for m in model.model.modules())


class Residual(nn.Module):
    """A block of no known family: x + MLP(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def test_any_module_by_given_places() -> None:
    blocks = nn.Sequential(Residual(), Residual())
    bank = AdapterBank(2, 8, 4)
    bank.add_task()
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(torch.randn_like(p))
    points = [AdapterPoint(block, block.norm) for block in blocks]
    model = attach_adapters(blocks, bank, points).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        first = blocks[0](x) + bank(0, x, 0)
        expected = blocks[1](first) + bank(1, first, 0)
        torch.testing.assert_close(model(x, task=0), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="Parts"):
        model.trunk(x)
    whole = attach_adapters(nn.Sequential(*blocks), bank, Parts(nn.Identity(), points, nn.Identity()))
    assert whole.trunk(x).tokens.shape == x.shape


class Block(Residual):
    """Known by this name, as timm's."""


class VisionTransformer(nn.Module):
    """The parts of timm's that are looked at; timm itself does not import without torchvision."""

    global_pool, num_prefix_tokens = "token", 1

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(6, 8)
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(Block(), Block())
        for block in self.blocks:
            block.norm2 = block.norm
        self.norm, self.fc_norm = nn.LayerNorm(8), nn.Identity()

    def _pos_embed(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(x), 1, 8), x], 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.norm_pre(self._pos_embed(self.patch_embed(x)))))


def test_a_timm_transformer() -> None:
    timm = VisionTransformer()
    bank = AdapterBank(2, 8, 4)
    bank.add_task()
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(torch.randn_like(p))
    model = attach_adapters(timm, bank).eval()
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        features = model.features(model.trunk(x), 0)
        torch.testing.assert_close(features, model(x, task=0)[:, 0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(features, model(x)[:, 0], atol=1e-2)


def test_adapters_in_the_last_blocks() -> None:
    """Passes that share the longer trunk equal whole passes, and those of adapters that are 0 in the others."""
    whole = adapted(tasks=3)
    bank = AdapterBank(2, SIZES["hidden_size"], 4)
    for task in range(3):
        bank.add_task()
        with torch.no_grad():
            for layer in range(2):
                for name in ("down", "down_bias", "up", "up_bias"):
                    bank._row(task, name, layer).copy_(whole.bank._row(task, name, layer + 1))
            for name in ("up", "up_bias"):
                whole.bank._row(task, name, 0).zero_()
    model = attach_adapters(model_of("vit"), bank, blocks=2).eval()
    images = torch.rand(4, 3, 16, 16)
    task, sample = torch.tensor([-1, 0, 1, 1, 2]), torch.tensor([3, 0, 2, 1, 1])
    ran: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: ran.append(len(args[0])))
    with torch.no_grad():
        long, short = model.trunk(images, layers=3), whole.trunk(images)
        assert ran == [4]
        for mean in (False, True):
            for layers in (1, 2, 3):
                for pairs in ((None, None), (1, None), (task, sample)):
                    ours = model.features(long, *pairs, mean=mean, layers=layers)
                    expected = whole.features(short, *pairs, mean=mean, layers=layers)
                    torch.testing.assert_close(ours, expected, **CLOSE)
        assert ran == [4]  # whatever is asked of the trunk, the first block does not run again
        torch.testing.assert_close(class_token(model, images, 2), class_token(whole, images, 2), **CLOSE)
        with pytest.raises(ValueError, match=r"at most the 2 that the trunk has kept, got 3; pass layers=3 to"):
            model.features(model.trunk(images), layers=3)


def test_no_backward_pass_through_the_trunk() -> None:
    bank = AdapterBank(2, SIZES["hidden_size"], 4)
    bank.add_task()
    model = attach_adapters(model_of("vit"), bank, blocks=2)
    back: list[nn.Module] = []
    for block in model.model.layers:
        block.register_full_backward_hook(lambda module, *_: back.append(module))
    model.features(model.trunk(torch.rand(2, 3, 16, 16)), 0).square().sum().backward()
    # The second block stands in the trunk as well: its adapter is parallel to it.
    assert back == [model.model.layers[2]]
    assert all(float(bank._row(0, "up_bias", layer).grad.abs().max()) > 0 for layer in range(2))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"2 layers, but there are 3 places.*pass blocks=2"):
        attach_adapters(model_of("vit"), AdapterBank(2, 24))
    with pytest.raises(ValueError, match=r"bank has 3 layers, but there are 2 places for adapters$"):
        attach_adapters(model_of("vit"), AdapterBank(3, 24), blocks=2)
    with pytest.raises(ValueError, match=r"bank has width 8, and the model's tokens have 24"):
        attach_adapters(model_of("vit"), AdapterBank(3, 8))
    with pytest.raises(TypeError, match=r"trunk must be what trunk\(images\) returns, got Tensor"):
        adapted().features(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"blocks must be .*3"):
        attach_adapters(model_of("vit"), AdapterBank(4, 24), blocks=4)
    with pytest.raises(ValueError, match="pass points="):
        attach_adapters(nn.Linear(2, 2), AdapterBank(1, 2))
    with pytest.raises(ValueError, match="bank has 2 layers, but there are 3 places"):
        attach_adapters(model_of("vit"), AdapterBank(2, 24))
