"""The concept bank: millions of centres sharded over all ranks, the loss against them, and their optimizer."""

from megatron_ovenc.concept_bank.bank import ConceptBank
from megatron_ovenc.concept_bank.centres import row_range
from megatron_ovenc.concept_bank.optimizer import BankOptimizer

__all__ = ["BankOptimizer", "ConceptBank", "row_range"]
