"""The shop's search: the words of a query against the products' texts, ranked by BM25, on tantivy in memory.

Flows in: what somebody typed; flows out: product numbers, best first, in an order that is the same in every process.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from atlas_ray.environments.builtin.webshop.catalogue import Product, product
from atlas_ray.errors import UserError

MOST_RESULTS = 50
_MOST_WORDS = 24
_WORD = re.compile(r"[a-z0-9]{1,30}")
_BYTES_PER_PRODUCT = 2_500  # of the writer's memory, so that it never cuts the index into segments
_MOST_BYTES = 4_000_000_000  # tantivy's own bound for a writer's thread


class Search:
    """The index of `size` products.

    Args:
        product: Gives a product by its number, from 0.
        bytes_each: Of the writer's memory, for each product.

    Raises:
        UserError: If tantivy is not installed, or the products do not fit one segment of an index.
    """

    def __init__(
        self, size: int, product: Callable[[int], Product] = product, bytes_each: int = _BYTES_PER_PRODUCT
    ) -> None:
        try:
            import tantivy
        except ImportError:
            raise UserError("webshop needs tantivy", "pip install 'atlas-ray[webshop]'") from None
        self._tantivy, self.size, self.product = tantivy, size, product
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("number", fast=True)
        builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
        self._schema = builder.build()
        index = tantivy.Index(self._schema)
        # one thread and one segment: hits of equal score come in the order in which they were added
        writer = index.writer(heap_size=min(32_000_000 + bytes_each * size, _MOST_BYTES), num_threads=1)
        for number in range(size):
            words = " ".join(_WORD.findall(product(number).text.lower()))
            writer.add_document(tantivy.Document(number=number, text=words))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._searcher = index.searcher()
        if self._searcher.num_segments != 1:
            raise UserError(  # equal hits would come in a random order
                f"the texts of {size:,} products are too much for one index", "serve fewer products"
            )

    def find(self, text: str) -> list[int]:
        """Numbers of at most 50 products that hold any of the words, best first.

        The query is put together word by word, so no text is ever parsed.
        """
        words = dict.fromkeys(_WORD.findall(text[:1_000].lower()))
        terms = [self._term(word) for word in list(words)[:_MOST_WORDS]]
        if not terms:
            return []
        query = self._tantivy.Query.boolean_query(terms)
        hits = self._searcher.search(query, MOST_RESULTS, count=False).hits
        return [
            int(n)
            for n in self._searcher.fast_field_values("number", [address for _, address in hits])
            if n is not None
        ]

    def _term(self, word: str) -> Any:
        return self._tantivy.Occur.Should, self._tantivy.Query.term_query(self._schema, "text", word)


@functools.lru_cache(maxsize=2)
def search_of(size: int) -> Search:
    """The index that this process's sessions share.

    Raises:
        UserError: As `Search`.
    """
    return Search(size)
