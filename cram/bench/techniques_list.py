"""The table of techniques: what can be switched on, where it is from, what for, who proves it and who does it.

Names of objects and tests are checked by a test; their lines are looked up when the page is written.
"""

from __future__ import annotations

import dataclasses

T = "tests/cram/test_"
ADAMW, ADALOMO = ("optimizer.type=adamw",), ("optimizer.type=adalomo", "optimizer.clip=null")
MICRO, CAUSAL = ("train.micro_batch_tokens=512",), ("objective.type=causal",)
PROCESSES = "needs several devices: two processes on one CPU only show that the result is the same"


@dataclasses.dataclass(frozen=True)
class Technique:
    """One switch. settings: that turn it on; code: ``module:object``; test: that shows equality or the tolerance.

    against: settings of the plain run it is compared with, and its own as well. teacher: it learns from a run made before.
    unmeasured: why it has no figures on a CPU.
    """

    name: str
    settings: tuple[str, ...]
    source: str
    purpose: str
    code: str
    test: str
    against: tuple[str, ...] = ()
    teacher: bool = False
    unmeasured: str = ""

    @property
    def keys(self) -> set[str]:
        """The configuration keys that it sets."""
        return {setting.partition("=")[0] for setting in self.settings} | ({"distill.teacher"} if self.teacher else set())


TECHNIQUES = (
    # memory
    Technique("recomputation, selective", ("train.recompute=selective",), "Korthikanti et al. 2022, section 5",
              "Keeps matrix products and attention only, and computes the cheap rest again: larger micro-batches.",
              "cram.recompute:run", T + "recompute.py::test_selective_repeats_no_matrix_product_and_no_attention"),
    Technique("recomputation, full", ("train.recompute=full",), "Chen et al. 2016",
              "Keeps the inputs of blocks only, for about a third more work: the largest micro-batches and rows.",
              "cram.recompute:run", T + "recompute.py::test_every_mode_trains_the_same_bits"),
    Technique("AdaLomo", ("optimizer.type=adalomo", "optimizer.lr=0.003"), "Lv et al. 2023, AdaLomo, algorithm 1",
              "Second moments by rows and columns, no first: an adaptive optimizer with next to no state.",
              "cram.adalomo:AdaLomo", T + "optim_adalomo.py::test_adalomo_equals_its_algorithm_in_float64", ADAMW),
    Technique("AdaLomo, fused backward", ("optimizer.fused_backward=true",), "Lv et al. 2023, LOMO",
              "Updates each parameter in the backward pass and frees its gradient: gradients are never all alive.",
              "cram.optim:Optimizers",
              T + "optim_adalomo.py::test_fused_into_the_backward_pass_it_moves_the_same_bits_with_fewer_gradients_alive",
              (*ADALOMO, "optimizer.lr=0.003")),
    Technique("8-bit states", ("optimizer.state_bits=8",), "Dettmers et al. 2022",
              "AdamW's moments in a quarter of the memory.", "cram.adamw:adamw_8bit",
              T + "optim.py::test_8_bit_moments_take_a_quarter_of_the_room_and_spare_the_embeddings", ADAMW),
    Technique("optimizer offload", ("optimizer.offload=true",), "ZeRO-Offload, Ren et al. 2021",
              "AdamW's moments and step in the computer's memory: room on the card for model and activations.",
              "cram.offload:OffloadedAdamW", T + "optim.py::test_offload_equals_the_plain_step_bit_for_bit", ADAMW),
    Technique("chunked loss", ("train.loss=chunked",), "Wijmans et al. 2024 (the idea)",
              "Never holds all logits: large vocabularies and micro-batches fit.",
              "cram.ops:linear_cross_entropy", "tests/kernels/test_loss.py::test_equals_float64"),
    Technique("8-bit matrix products", ("train.fp8=true",), "Micikevicius et al. 2022",
              "Products of the blocks at twice the rate of bf16.", "cram.fp8:Float8Linear",
              T + "fp8.py::test_products_are_as_near_to_float32_as_the_formats_allow", unmeasured="not measured: needs a card"),
    # shapes over the budget
    Technique("short rows first", ("train.sequence_schedule=[[0, 32], [0.5, 128]]",),
              "Li et al. 2022 (sequence length warm-up)",
              "Short rows cost less attention and settle a young model; the end is trained at full length.",
              "cram.shapes:shape_at", T + "batches.py::test_pieces_of_rows_are_rows_of_their_own"),
    Technique("context extension", ("model.rope_base_end=40000",),
              "Xiong et al. 2023, section 2.1", "Longer wavelengths of the rotary positions once rows grow.",
              "cram.shapes:shape_at", T + "model_switches.py::test_what_is_set_between_steps_equals_a_model_built_so",
              ("train.sequence_schedule=[[0, 32], [0.5, 128]]",)),
    Technique("batch ramp", ("train.batch_ramp=0.5", "train.batch_start_tokens=512"), "Geiping & Goldstein 2023, section 4.3",
              "Small batches learn more a token while gradients still agree.", "cram.schedule:batch_tokens",
              T + "schedule.py::test_batch_grows_linearly_from_its_start", MICRO),
    Technique("falling mask rate", ("objective.mask_rate_end=0.15",), "Yang et al. 2023; Wettig et al. 2023",
              "More signal a row early, the rate of evaluation late.", "cram.schedule:mask_rate",
              T + "schedule.py::test_mask_rate_falls_in_equal_plateaus"),
    Technique("growing window", ("train.window_schedule=[[0, 16], [0.5, 128]]",), "modded-nanogpt (window warm-up)",
              "Early on only near tokens help: attention costs less.", "cram.shapes:shape_at",
              T + "model_switches.py::test_what_is_set_between_steps_equals_a_model_built_so"),
    Technique("sliding window", ("model.window=32",), "Longformer, Beltagy et al. 2020, section 3.1",
              "Attention whose cost grows with the window, not with the row.", "cram.layers:View",
              T + "model.py::test_equals_the_formulas"),
    Technique("layer stacking", ("train.layer_schedule=[[0, 2], [0.5, 4]]",), "Gong et al. 2019",
              "A shallow model learns fast; copies of its blocks on top make it deep.", "cram.model:Transformer.stack",
              T + "model_switches.py::test_stacking_copies_the_model_onto_itself"),
    Technique("curriculum", ("train.order=frequent-first",), "Geiping & Goldstein 2023, section 4.4",
              "Rows of frequent tokens first.", "cram.order:row_scores", T + "order.py::test_scores_are_those_of_a_slow_count"),
    # objective
    Technique("hybrid objective", ("objective.type=hybrid",), "GPT-BERT, Charpentier & Samuel 2024, section 2",
              "One model that fills blanks and goes on writing.", "cram.objective:step_kinds",
              T + "batches.py::test_hybrid_predicts_each_hidden_token_at_the_position_before_it", CAUSAL),
    Technique("distillation", ("distill.weight=0.7",), "Hinton et al. 2015, section 2",
              "The whole distribution of a teacher says more than one token; the teacher's cost is charged.",
              "cram.objective:distillation", T + "objective.py::test_a_teacher_as_by_definition", teacher=True),
    Technique("z-loss", ("objective.z_loss=0.0001",), "PaLM, Chowdhery et al. 2022, section 5",
              "Keeps the normaliser of the softmax near 1: logits do not drift.", "cram.objective:squared_log_z",
              T + "objective.py::test_loss_is_the_sum_over_predicted_tokens"),
    # model
    Technique("value embeddings", ("model.value_embeddings=true",), "Zhou et al. 2024; modded-nanogpt",
              "Tokens speak to the values directly: parameters without products.", "cram.layers:ValueEmbedding",
              T + "model_switches.py::test_a_value_embedding_starts_as_its_table_times_one"),
    Technique("residual scalars", ("model.residual_scalars=true",), "modded-nanogpt",
              "Every block may look back at the embedded tokens.", "cram.layers:ResidualScalars",
              T + "model_switches.py::test_the_switches_leave_the_other_weights_and_at_first_the_model_alone"),
    Technique("bigram embeddings", ("model.bigram_rows=16384",), "modded-nanogpt; Weinberger et al. 2009",
              "What usually follows a pair of tokens needs no attention.", "cram.layers:BigramEmbedding",
              T + "model_switches.py::test_a_bigram_starts_as_nothing_and_learns_what_pairs_ask_of_it"),
    Technique("logit softcap", ("model.logit_softcap=30",), "Gemma 2, Gemma Team 2024, section 2",
              "Bounds the logits smoothly.", "cram.model:Transformer.logits", T + "model.py::test_equals_the_formulas"),
    Technique("squared ReLU", ("model.mlp=relu2",), "Primer, So et al. 2021",
              "As good as gated units, with one matrix less and zeros in the activations.", "cram.layers:MLP",
              T + "model.py::test_equals_the_formulas"),
    Technique("untied head", ("model.tied=false",), "against Press & Wolf 2017",
              "Input and output tables of their own, for twice the room.", "cram.model:Transformer",
              T + "model.py::test_initialisation_is_as_configured"),
    Technique("grouped queries", ("model.kv_heads=2",), "Ainslie et al. 2023",
              "Fewer keys and values: less to keep and to compute.", "cram.layers:Attention",
              T + "model.py::test_equals_hugging_face_llama"),
    # optimizer
    Technique("cautious weight decay", ("optimizer.cautious=true",), "Chen et al. 2025, algorithm 1",
              "Decays only where that does not oppose the update.", "cram.muon:Muon",
              T + "optim_muon.py::test_cautious_decay_spares_the_weights_that_the_update_opposes"),
    Technique("averaged weights", ("train.ema=0.8",), "Polyak & Juditsky 1992; Morales-Brotons et al. 2024",
              "The mean of the last weights is steadier than the last.", "cram.ema:EMA",
              T + "optim_averages.py::test_ema_equals_the_sum_written_out"),
    # devices
    Technique("micro-batches side by side", ("train.workers=2",), "data parallelism within a process",
              "A processor's threads each compute a micro-batch: the operations of a small model are too short to be divided.",
              "cram.side_by_side:Workers", T + "side_by_side.py::test_the_bits_are_those_of_one_worker", MICRO,
              unmeasured="depends on the number of threads: reports/speed_log.md"),
    *(Technique(name, (f"train.parallel={kind}",), source, purpose, "cram.parallel:World",
                T + "parallel.py::test_every_step_equals_that_of_one_process", unmeasured=PROCESSES)
      for name, kind, source, purpose in (
          ("data parallelism", "ddp", "Li et al. 2020", "Each device takes a share of the batch."),
          ("sharded data parallelism", "fsdp", "ZeRO stage 3, Rajbhandari et al. 2020; FSDP, Zhao et al. 2023",
           "And holds a share of parameters, gradients and states only."),
          ("tensor parallelism", "tp", "Megatron-LM, Shoeybi et al. 2019, section 3",
           "Each device computes a share of every layer."))),
)
# Keys of these sections that are no technique of the table: sizes, what every run has, and what `cram bench defaults` weighs.
SECTIONS = ("model", "objective", "optimizer", "train", "distill")
BASICS = (
    "model.layers", "model.width", "model.heads", "model.mlp_width", "model.norm", "model.norm_eps", "model.position",
    "model.rope_base", "model.attention", "model.qk_norm", "model.embedding_norm", "model.first_attention_norm", "model.bias",
    "model.zero_init", "model.init_std", "model.document_mask", "objective.causal_share", "objective.mask_rate", "objective.mask_rate_levels",
    "objective.mask_token_fraction", "objective.random_token_fraction", "optimizer.embedding_lr", "optimizer.muon_lr",
    "optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.momentum", "optimizer.weight_decay", "optimizer.clip",
    "train.sequence_length", "train.batch_tokens", "train.micro_batch_tokens", "train.device", "train.precision",
    "train.compile", "train.spike_sigmas", "train.spike_window", "train.skip_limit", "train.rollback_limit", "train.threads",
    "train.deterministic", "train.checkpoint_every", "train.checkpoint_every_steps", "train.keep_checkpoints",
    "train.validate_every", "train.validation_tokens", "train.validation_pairs", "train.reserve", "train.replay", "distill.temperature")
